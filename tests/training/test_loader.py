from __future__ import annotations

import json
import math
import re
import threading
import warnings

import numpy as np
import pytest
import torch

from reqdedup.training.blocks import HistoryCut, RequestBlock
from reqdedup.training.loader import RequestLoader
from reqdedup.training.split import UserSplit
from tests.training.logs import SCHEMA, random_log


def _requests(batches):
    """(user, request) -> values and rows as plain Python, of every request in the batches; fails where one comes twice."""
    found = {}
    for batch in batches:
        batch.validate()
        for r in range(batch.num_requests):
            key = (int(batch.user_id_R[r]), int(batch.request["request_id"][r]))
            tokens = slice(*batch.history_offsets_R1[r : r + 2].tolist())
            rows = range(*batch.row_offsets_R1[r : r + 2].tolist())
            assert key not in found
            found[key] = {
                **{f"history_{name}": values[tokens].tolist() for name, values in batch.history.items()},
                **{name: values[r].tolist() for name, values in batch.request.items() if name != "request_id"},
                "rows": [
                    {
                        "item_id": int(batch.item_id_B[b]),
                        **{name: values[b].item() for name, values in batch.row.items()},
                    }
                    for b in rows
                ],
            }
    return found


def _none(value, missing):
    return missing if value is None else value


def _expected(log):
    """What the loader must give: nulls replaced, strings left out."""
    expected = {}
    for key, request in log.requests.items():
        rows = [
            {
                **row,
                "is_new": _none(row["is_new"], False),
                "price": _none(row["price"], math.nan),
                "click": _none(row["click"], math.nan),
            }
            for row in request["rows"]
        ]
        values = {name: value for name, value in request.items() if name != "user_key"}
        expected[key] = {**values, "device": _none(request["device"], -1), "rows": rows}
    return expected


def _assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, request in expected.items():
        np.testing.assert_equal(found[key], request)


BATCHING = [
    {"requests_per_batch": 1},
    {"requests_per_batch": 7},
    {"requests_per_batch": 1000},
    {"rows_per_batch": 1},
    {"rows_per_batch": 20},
    {"rows_per_batch": 10_000},
]


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["requests", "users", "none"])
@pytest.mark.parametrize("batching", BATCHING, ids=str)
def test_every_value_of_every_request_arrives_once_an_epoch(batching, shuffle):
    log = random_log()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(RequestLoader(log, **batching, shuffle=shuffle, buffer_requests=30))
    _assert_same(_requests(batches), _expected(log))
    if "requests_per_batch" in batching:
        assert all(batch.num_requests == batching["requests_per_batch"] for batch in batches[:-1])
    else:
        assert all(batch.num_rows <= batching["rows_per_batch"] or batch.num_requests == 1 for batch in batches)


@pytest.mark.slow
def test_files_and_cut_batches_give_the_same_requests_as_memory(tmp_path):
    log = random_log(seed=1)
    for source in (log.write(tmp_path / "log.parquet"), log.cut_batches(4), log.cut_batches(1000)):
        _assert_same(_requests(RequestLoader(source, requests_per_batch=7)), _expected(log))


def test_request_level_values_are_never_copied_to_rows():
    log = random_log(largest_fan_out=60)
    batch = next(iter(RequestLoader(log, requests_per_batch=10)))
    assert batch.num_rows > 100
    assert all(len(values) == 10 for values in batch.request.values())
    assert batch.num_history_tokens == int(batch.history_offsets_R1[-1]) <= 90


def test_batches_come_to_the_device_that_was_asked_for():
    loader = RequestLoader(random_log(), requests_per_batch=10, device="meta")
    for batch in (next(iter(loader)), loader.empty_batch()):
        assert {tensor.device.type for tensor in batch.tensors().values()} == {"meta"}


def test_without_shuffle_a_range_of_requests_is_a_view_of_the_arrow_buffers():
    log = random_log(num_groups=1, seed=3)
    rows = log.groups[0]
    block = RequestBlock.of(rows.select([name for name in SCHEMA.names if name != "user_key"]), SCHEMA.select(
        [name for name in SCHEMA.names if name != "user_key"]))  # fmt: skip
    batch = block.take(np.arange(2, 6))
    start = rows.column("item_id").buffers()[1]
    assert start.address <= batch.item_id_B.data_ptr() < start.address + start.size
    embedding = rows.column("user_embedding").dictionary.buffers()[2]
    assert embedding.address <= batch.request["user_embedding"].data_ptr() < embedding.address + embedding.size


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 15])
@pytest.mark.parametrize("shuffle", ["requests", "users", "none"])
def test_ranks_together_see_every_request_exactly_once(world_size, shuffle):
    log = random_log(num_groups=4 if world_size < 15 else 1)  # of which more ranks than requests
    for source in (log, log.cut_batches(11)):
        per_rank = [
            list(
                RequestLoader(
                    source, requests_per_batch=5, shuffle=shuffle, rank=rank, world_size=world_size, prefetch_batches=0
                )
            )
            for rank in range(world_size)
        ]
        _assert_same(_requests([batch for batches in per_rank for batch in batches]), _expected(log))
        rows = [sum(batch.num_rows for batch in batches) for batches in per_rank]
        if source is log:
            assert max(rows) - min(rows) <= 2 * 6  # one request at each end of a share


def test_a_rank_opens_its_own_row_groups_and_at_most_two_shared_ones():
    log = random_log(num_groups=40)
    list(RequestLoader(log, requests_per_batch=5, rank=1, world_size=4))
    assert len(log.reads) <= 12


def test_the_order_depends_on_seed_and_epoch_alone():
    def epochs(seed, prefetch):
        loader = RequestLoader(
            random_log(), requests_per_batch=9, seed=seed, buffer_requests=20, prefetch_batches=prefetch
        )
        return [[batch.item_id_B.tolist() for batch in loader] for _ in range(2)]

    first = epochs(0, prefetch=2)
    assert first == epochs(0, prefetch=0)
    assert first[0] != first[1]
    assert first != epochs(1, prefetch=2)
    loader = RequestLoader(random_log(), requests_per_batch=9, seed=0, buffer_requests=20)
    loader.set_epoch(1)
    assert [batch.item_id_B.tolist() for batch in loader] == first[1]


@pytest.mark.slow
def test_a_larger_window_brings_more_users_into_a_batch():
    log = random_log(num_groups=20)

    def users(**options):
        loader = RequestLoader(log, requests_per_batch=12, **options)
        return np.mean([len(batch.user_id_R.unique()) for batch in loader])

    assert users(shuffle="none") < 6
    assert users(buffer_requests=1) < users(buffer_requests=260)
    assert users(buffer_requests=260) > 10


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(0, 14, 3))
@pytest.mark.parametrize("batching", [{"requests_per_batch": 6}, {"rows_per_batch": 25}], ids=str)
def test_a_loader_resumed_anywhere_gives_the_same_batches(stop, batching):
    log = random_log(num_groups=7)
    options = {**batching, "buffer_requests": 30, "rank": 1, "world_size": 2, "seed": 3}

    def take(loader, epochs):
        return [batch.tensors() for _ in range(epochs) for batch in loader]

    whole = take(RequestLoader(log, **options), 2)
    first = RequestLoader(log, **options)
    begun, iterator = [], iter(first)
    for _ in range(stop):
        batch = next(iterator, None)
        if batch is None:
            iterator = iter(first)
            batch = next(iterator)
        begun.append(batch.tensors())
    second = RequestLoader(log, **options)
    second.load_state_dict(first.state_dict())
    resumed = begun + take(second, 2 - second.epoch)
    assert len(resumed) == len(whole)
    for found, wanted in zip(resumed, whole):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name].nan_to_num(-7), wanted[name].nan_to_num(-7)) for name in wanted)


def test_a_state_of_another_order_is_refused():
    state = RequestLoader(random_log(), requests_per_batch=3, seed=1).state_dict()
    with pytest.raises(ValueError, match="seed = 1 required"):
        RequestLoader(random_log(), requests_per_batch=3, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="source, row groups"):
        RequestLoader(random_log(num_groups=3), requests_per_batch=3, seed=1).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cut": HistoryCut(max_events=5)}, "cut, max_events = 4 required to continue, found 5"),
        ({"cut": HistoryCut(max_events=4, stride=4)}, "cut, stride = 1"),
        ({"cut": None}, "cut = "),
        ({"columns": ["click"]}, "columns = "),
        ({"users": UserSplit(held_out=0.2, part="train")}, "users, held_out = 0.1"),
        ({"chunk_rows": 3}, "chunk_rows = None"),
    ],
    ids=str,
)
def test_a_state_of_another_cut_or_selection_is_refused_by_name(changes, named):
    options = {"cut": HistoryCut(max_events=4, stride=1), "users": UserSplit(held_out=0.1, part="train")}
    state = RequestLoader(random_log(), requests_per_batch=3, **options).state_dict()
    assert json.loads(json.dumps(state)) == state
    RequestLoader(random_log(), requests_per_batch=3, **options).load_state_dict(state)
    default = {**options, "cut": HistoryCut(max_events=4)}  # whose stride is a quarter of it
    RequestLoader(random_log(), requests_per_batch=3, **default).load_state_dict(state)
    with pytest.raises(ValueError, match=re.escape(f"loader state: {named}")):
        RequestLoader(random_log(), requests_per_batch=3, **{**options, **changes}).load_state_dict(state)


def test_a_state_of_other_files_with_equal_row_counts_is_refused(tmp_path):
    log = random_log()
    state = RequestLoader(log.write(tmp_path / "a.parquet"), requests_per_batch=3).state_dict()
    (tmp_path / "moved").mkdir()
    RequestLoader(log.write(tmp_path / "moved" / "a.parquet"), requests_per_batch=3).load_state_dict(state)
    others = [log.write(tmp_path / "b.parquet"), random_log(seed=1).write(tmp_path / "a.parquet")]
    for other in others:
        with pytest.raises(ValueError, match="source, files = "):
            RequestLoader(other, requests_per_batch=3).load_state_dict(state)


def test_a_source_that_cannot_say_what_it_reads_is_not_resumed():
    loader = RequestLoader(random_log().cut_batches(7), requests_per_batch=3)
    with pytest.raises(ValueError, match=r"fingerprint\(\) required to continue, found BatchesOnly"):
        loader.load_state_dict(loader.state_dict())


def test_a_state_of_version_0_1_0_is_refused():
    old = {"position": {"epoch": 0, "block": 0, "window": 0, "request": 3}, "order": {"row_groups": [1, 2]}}
    with pytest.raises(ValueError, match=r"format 1 required, found none, as version 0\.1\.0 wrote it"):
        RequestLoader(random_log(), requests_per_batch=3).load_state_dict(old)


@pytest.mark.slow
def test_a_split_by_user_is_a_partition_and_stable():
    log = random_log(num_groups=30)
    parts = {
        part: _requests(
            RequestLoader(log, requests_per_batch=7, users=UserSplit(held_out=0.3, part=part), prefetch_batches=0)
        )
        for part in ("train", "test")
    }
    users = {part: {user for user, _ in requests} for part, requests in parts.items()}
    assert not users["train"] & users["test"]
    _assert_same({**parts["train"], **parts["test"]}, _expected(log))
    assert 0.2 < len(users["test"]) / 150 < 0.4


def test_positive_rows_only_keeps_requests_that_have_one():
    log = random_log()
    expected = {}
    for key, request in _expected(log).items():
        rows = [row for row in request["rows"] if row["click"] == 1]
        if rows:
            expected[key] = {**request, "rows": rows}
    _assert_same(_requests(RequestLoader(log, requests_per_batch=7, positive_label="click")), expected)


@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 100])
def test_chunks_of_a_request_are_requests_that_together_hold_its_rows(chunk_rows):
    log = random_log()
    found = {}
    for batch in RequestLoader(log, requests_per_batch=7, chunk_rows=chunk_rows):
        batch.validate()
        assert int(batch.row_offsets_R1.diff().max()) <= chunk_rows
        for r in range(batch.num_requests):
            rows = batch.item_id_B[batch.row_offsets_R1[r] : batch.row_offsets_R1[r + 1]].tolist()
            history = batch.history["item_id"][batch.history_offsets_R1[r] : batch.history_offsets_R1[r + 1]].tolist()
            key = (int(batch.user_id_R[r]), int(batch.request["request_id"][r]))
            assert history == log.requests[key]["history_item_id"]
            found.setdefault(key, []).append(rows)
    for key, request in log.requests.items():
        assert sorted(item for rows in found[key] for item in rows) == [row["item_id"] for row in request["rows"]]
        assert len(found[key]) == math.ceil(len(request["rows"]) / chunk_rows)


def test_a_history_is_cut_to_its_anchored_window():
    log = random_log(largest_history=20)
    cut = HistoryCut(max_events=8, stride=3)
    found = _requests(RequestLoader(log, requests_per_batch=5, cut=cut))
    for key, request in log.requests.items():
        length, end = len(request["history_item_id"]), request["history_end"]
        start = 3 * math.ceil(max(0, end - 8) / 3)
        skipped = min(max(start - (end - length), 0), length)
        assert found[key]["history_item_id"] == request["history_item_id"][skipped:]
        assert found[key]["history_action"] == request["history_action"][skipped:]
        assert len(found[key]["history_action"]) <= 8


def test_an_empty_batch_has_the_tensors_of_the_others():
    loader = RequestLoader(random_log(), requests_per_batch=5)
    batch, empty = next(iter(loader)), loader.empty_batch().validate()
    assert {name: (t.dtype, t.shape[1:]) for name, t in batch.tensors().items()} == {
        name: (t.dtype, t.shape[1:]) for name, t in empty.tensors().items()
    }
    assert empty.num_requests == empty.num_rows == 0


def test_only_named_columns_are_read():
    loader = RequestLoader(random_log(), requests_per_batch=5, columns=["history_item_id", "click"])
    batch = next(iter(loader))
    assert set(batch.history) == {"item_id"}
    assert set(batch.row) == {"click"}
    assert set(batch.request) == {"request_id", "request_ts"}
    with pytest.raises(ValueError, match="no such columns: colour"):
        RequestLoader(random_log(), requests_per_batch=5, columns=["colour"])


def test_an_error_of_the_source_reaches_the_caller_and_no_thread_stays():
    log = random_log()
    del log.groups[-1]
    log.row_groups = lambda: random_log().row_groups()  # type: ignore[method-assign]
    with pytest.raises(IndexError):
        list(RequestLoader(log, requests_per_batch=5))
    for _ in RequestLoader(random_log(), requests_per_batch=1):
        break
    assert not [t for t in threading.enumerate() if t.name == "reqdedup-prefetch"]


def test_sequences_of_unequal_length_are_refused():
    log = random_log(num_groups=1)
    broken = log.groups[0]
    at = broken.schema.get_field_index("history_action")
    actions = broken.column("history_action")
    doubled = actions.from_arrays(actions.indices, [blob.as_py() * 2 for blob in actions.dictionary])
    log.groups[0] = broken.set_column(at, broken.schema.field(at), doubled)
    with pytest.raises(ValueError, match="history_action: its sequences must be as long"):
        list(RequestLoader(log, requests_per_batch=5))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "exactly one"),
        ({"requests_per_batch": 1, "rows_per_batch": 1}, "exactly one"),
        ({"rows_per_batch": 0}, "at least 1"),
        ({"rows_per_batch": 1, "shuffle": "rows"}, "shuffle"),
        ({"rows_per_batch": 1, "rank": 2, "world_size": 2}, "rank"),
        ({"rows_per_batch": 1, "positive_label": "position"}, "positive_label"),
        ({"rows_per_batch": 1, "chunk_rows": 0}, "chunk_rows"),
    ],
)
def test_options_that_cannot_work_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        RequestLoader(random_log(), **options)
