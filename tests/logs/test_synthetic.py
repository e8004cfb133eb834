import hashlib
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.arrays.windows import anchored_start
from reqdedup.dedup.encoding import check_deduplicated, expand_to_lists, numpy_from_blobs, sequence_lengths
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.logs.catalogue import Catalogue, random_stream
from reqdedup.logs.synthetic import user_factors
from reqdedup.logs.synthetic_config import make_catalogue

SMALL = SyntheticLogConfig(
    seed=3, num_users=150, num_items=5_000, mean_fan_out=20, max_fan_out=100, history_scale=0.02, max_history=256,
    users_per_block=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def small_batches():
    return list(synthesize(SMALL))


@pytest.fixture(scope="module")
def small_rows(small_batches):
    schema = synthetic_schema(SMALL)
    return pa.Table.from_batches([expand_to_lists(batch, schema) for batch in small_batches])


def requests_of(rows: pa.Table) -> list[dict]:
    """One dictionary per request, in order of (user, time)."""
    ids = rows["request_id"].to_numpy()
    _, first = np.unique(ids, return_index=True)
    requests = rows.take(first).to_pylist()
    return sorted(requests, key=lambda request: (request["user_id"], request["request_ts"]))


def area_under_curve(score, label):
    order = np.argsort(score, kind="stable")
    ranks = np.empty(len(score))
    ranks[order] = np.arange(1, len(score) + 1)
    positives = label == 1
    return (ranks[positives].sum() - positives.sum() * (positives.sum() + 1) / 2) / (
        positives.sum() * (~positives).sum()
    )


def test_batches_are_deduplicated_batches_of_the_schema(small_batches):
    schema = synthetic_schema(SMALL)
    for batch in small_batches:
        check_deduplicated(batch, schema)
        for column in schema.blobs:
            values = batch.column(column.name).dictionary
            indices = batch.column(column.name).indices.to_numpy()
            assert set(indices) == set(range(len(values))), column.name
        for column in schema.sequences:  # one window is stored once
            windows = list(zip(batch["user_id"].to_pylist(), batch["history_end"].to_pylist()))
            assert len(set(windows)) == len(batch.column(column.name).dictionary)


def test_all_sequences_of_a_request_have_one_length(small_batches):
    schema = synthetic_schema(SMALL)
    for batch in small_batches:
        lengths = [sequence_lengths(batch.column(column.name), column) for column in schema.sequences]
        assert all(np.array_equal(lengths[0], other) for other in lengths[1:])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_another_process(small_batches):
    def digest(batches):
        sink = hashlib.sha256()
        for batch in batches:
            stream = pa.BufferOutputStream()
            with pa.ipc.new_stream(stream, batch.schema) as writer:
                writer.write_batch(batch)
            sink.update(stream.getvalue())
        return sink.hexdigest()

    program = (
        "import hashlib, pyarrow as pa, datetime\n"
        "from reqdedup.logs import SyntheticLogConfig, synthesize\n"
        f"config = {SMALL!r}\n"
        "sink = hashlib.sha256()\n"
        "for batch in synthesize(config):\n"
        "    stream = pa.BufferOutputStream()\n"
        "    with pa.ipc.new_stream(stream, batch.schema) as writer:\n"
        "        writer.write_batch(batch)\n"
        "    sink.update(stream.getvalue())\n"
        "print(sink.hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(small_batches)
    assert digest(synthesize(replace(SMALL, seed=4))) != digest(small_batches)


@pytest.mark.slow
def test_making_logs_needs_neither_torch_nor_dagster():
    program = "import sys, reqdedup.logs; print(any(name in sys.modules for name in ('torch', 'dagster')))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_no_event_is_at_or_after_its_request(small_rows):
    for request in requests_of(small_rows):
        limit = request["request_ts"].timestamp() * 1000
        assert all(ts < limit for ts in request["history_ts"])


def test_requests_see_anchored_windows_of_one_growing_timeline(small_rows):
    """Rebuilds every user's timeline from the windows: each request must agree with what the earlier ones saw."""
    timelines: dict[int, dict[int, tuple]] = {}
    cut = grown = 0
    for request in requests_of(small_rows):
        end = request["history_end"]
        start = SMALL.stride * -(-max(0, end - SMALL.max_history) // SMALL.stride)
        events = list(zip(request["history_item_id"], request["history_action"], request["history_ts"]))
        assert len(events) == end - start
        timeline = timelines.setdefault(request["user_id"], {})
        grown += bool(timeline)
        for index, event in zip(range(start, end), events):
            assert timeline.setdefault(index, event) == event
        cut += start > 0
    assert cut > 20
    assert grown > 20


def test_a_click_is_in_the_users_later_histories(small_rows):
    clicked: dict[int, list[int]] = {}
    request_of = small_rows["request_id"].to_pylist()
    for request, item, click in zip(request_of, small_rows["item_id"].to_pylist(), small_rows["click"].to_pylist()):
        clicked.setdefault(request, []).extend([item] * click)
    requests = requests_of(small_rows)
    compared = 0
    for before, after in pairwise(requests):
        if before["user_id"] == after["user_id"] and clicked[before["request_id"]]:
            new = after["history_end"] - before["history_end"]
            assert set(clicked[before["request_id"]]) <= set(after["history_item_id"][-new:])
            compared += 1
    assert compared > 20


def test_request_ids_are_unique_and_rise_in_time_and_items_are_distinct(small_rows):
    pairs = small_rows.group_by(["request_id", "item_id"]).aggregate([])
    assert pairs.num_rows == small_rows.num_rows
    assert small_rows.group_by(["request_id", "user_id", "request_ts"]).aggregate([]).num_rows == len(
        small_rows["request_id"].unique()
    )
    requests = requests_of(small_rows)
    for before, after in pairwise(requests):
        if before["user_id"] == after["user_id"]:
            assert before["request_id"] < after["request_id"]
            assert before["request_ts"] < after["request_ts"]


def test_requests_lie_in_the_days_before_the_end(small_rows):
    times = small_rows["request_ts"].to_pylist()
    assert max(times) < SMALL.end_ts
    assert (SMALL.end_ts - min(times)).days < SMALL.num_days
    hours = small_rows["hour_of_day"].to_pylist()
    assert all(ts.hour == hour for ts, hour in zip(times, hours))


@pytest.mark.slow
def test_history_lengths_have_the_published_quantiles():
    config = SyntheticLogConfig(num_users=3_000, mean_requests_per_user=1, mean_fan_out=1, history_scale=0.01, seed=5)
    ends = np.concatenate([batch["history_end"].to_numpy() for batch in synthesize(config)])
    ends = ends[ends > 0]
    assert np.median(ends) == pytest.approx(86, rel=0.06)
    assert np.quantile(ends, 0.9) == pytest.approx(246, rel=0.08)


@pytest.mark.slow
def test_full_length_histories_are_cut_at_the_maximum():
    config = SyntheticLogConfig(num_users=40, mean_requests_per_user=1.5, mean_fan_out=2, seed=2)
    schema = synthetic_schema(config)
    lengths = np.concatenate(
        [sequence_lengths(batch["history_item_id"], schema["history_item_id"]) for batch in synthesize(config)]
    )
    assert lengths.max() <= 16_384
    assert lengths.max() > 16_384 - config.stride
    assert 5_000 < np.median(lengths) < 14_000


@pytest.mark.slow
def test_fan_out_and_activity_are_heavy_tailed_with_the_configured_means():
    config = SyntheticLogConfig(
        num_users=2_000, mean_requests_per_user=4, mean_fan_out=30, max_fan_out=300, history_scale=0.001, seed=8
    )
    table = pa.Table.from_batches(
        [batch.select(["user_id", "request_id"]) for batch in synthesize(config)]
    )  # fmt: skip
    fan_out = table.group_by("request_id").aggregate([("user_id", "count")])["user_id_count"].to_numpy()
    requests = (
        table.group_by(["user_id", "request_id"]).aggregate([]).group_by("user_id").aggregate([([], "count_all")])
    )
    num_requests = requests["count_all"].to_numpy()
    assert fan_out.mean() == pytest.approx(30, rel=0.05)
    assert num_requests.mean() == pytest.approx(4, rel=0.1)
    assert fan_out.max() > 4 * fan_out.mean()
    assert num_requests.max() > 5 * num_requests.mean()
    assert num_requests.min() == 1


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.2])
def test_item_popularity_is_a_zipf_law(exponent):
    catalogue = Catalogue(seed=1, num_items=3_000_000, width=4, num_categories=8, popularity_exponent=exponent)
    items = catalogue.draw_popular(random_stream(1, 9), 2_000_000)
    assert items.min() >= 0
    assert items.max() < 3_000_000
    top = catalogue.id_of_rank(np.arange(300))
    counts = np.array([(items == item).sum() for item in top[[3, 9, 30, 99, 299]]])
    slope = np.polyfit(np.log([4, 10, 31, 100, 300]), np.log(counts), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.08)


@pytest.mark.slow
def test_item_properties_do_not_depend_on_the_size_of_the_catalogue():
    """Large catalogues compute factors on the fly, small ones look them up."""
    shape = {"seed": 1, "width": 8, "num_categories": 8, "popularity_exponent": 1.0}
    small, large = Catalogue(num_items=1_000, **shape), Catalogue(num_items=5_000_000, **shape)
    ids = np.arange(1_000)
    np.testing.assert_array_equal(small.factors(ids), large.factors(ids))
    np.testing.assert_array_equal(small.category(ids), large.category(ids))
    many = np.arange(0, 5_000_000, 500)
    assert len(np.unique(large.factors(many), axis=0)) == len(many)
    assert large.factors(many).std() == pytest.approx(1, abs=0.02)
    assert np.bincount(large.id_of_rank(np.arange(5_000_000)), minlength=5_000_000).max() == 1


@pytest.mark.slow
def test_clicks_and_histories_follow_the_users_taste():
    config = SyntheticLogConfig(
        num_users=300, num_items=20_000, mean_fan_out=30, history_scale=0.01, users_per_block=100, seed=6
    )
    catalogue = make_catalogue(config)
    scores, guesses, labels = [], [], []
    for block, batch in enumerate(synthesize(config)):
        factors = user_factors(config, block)
        user = batch["user_id"].to_numpy() - block * 100
        item = batch["item_id"].to_numpy()
        scores.append(catalogue.affinity(factors[user], item))
        values, offsets = numpy_from_blobs(batch["history_item_id"].dictionary, "int64")
        sums = np.add.reduceat(
            np.vstack([catalogue.factors(values), np.zeros((1, 16))]), np.minimum(offsets[:-1], len(values)), axis=0
        )
        guess = sums / np.maximum(np.diff(offsets), 1)[:, None]
        guesses.append(catalogue.affinity(guess[batch["history_item_id"].indices.to_numpy()].astype(np.float32), item))
        labels.append(np.stack([batch[name].to_numpy() for name in ("click", "save", "long_dwell")]))
    label = np.concatenate(labels, axis=1)
    assert area_under_curve(np.concatenate(scores), label[0]) > 0.75
    assert area_under_curve(np.concatenate(guesses), label[0]) > 0.65  # from the history and the item alone
    assert 0.05 < label[0].mean() < 0.5
    assert np.all(label[1:] <= label[0])
    assert np.all(label.sum(axis=1) > 100)


@pytest.mark.slow
def test_with_moods_the_newest_events_say_more_than_all_and_without_them_less():
    def skills(mood_days):
        """AUC of clicks by the mean item of the newest 64 events, and by that of all."""
        config = SyntheticLogConfig(
            num_users=150, num_items=20_000, mean_fan_out=30, history_scale=0.1, users_per_block=100, seed=6,
            mood_days=mood_days,
        )  # fmt: skip
        catalogue, newest, everything, label = make_catalogue(config), [], [], []
        for batch in synthesize(config):
            values, offsets = numpy_from_blobs(batch["history_item_id"].dictionary, "int64")
            factors = [catalogue.factors(values[begin:end]) for begin, end in pairwise(offsets.tolist())]
            request, item = batch["history_item_id"].indices.to_numpy(), batch["item_id"].to_numpy()
            for scores, last in ((newest, 64), (everything, 100_000)):
                guess = np.stack([x[-last:].mean(0) if len(x) else np.zeros(16) for x in factors])
                scores.append(catalogue.affinity(guess[request].astype(np.float32), item))
            label.append(batch["click"].to_numpy())
        return [area_under_curve(np.concatenate(scores), np.concatenate(label)) for scores in (newest, everything)]

    newest, everything = skills(0.0)
    assert newest < everything
    newest, everything = skills(120.0)
    assert newest > everything + 0.02


@pytest.mark.slow
def test_memory_is_that_of_a_block_and_batches_come_lazily():
    endless = replace(SMALL, num_users=10**9)
    assert len(list(islice(synthesize(endless), 3))) == 3

    def peak(num_users):
        tracemalloc.start()
        for _ in synthesize(replace(SMALL, num_users=num_users)):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(400) < 1.3 * peak(80)


@pytest.mark.slow
def test_batches_hold_whole_requests_and_about_the_configured_bytes(small_batches):
    cut = list(synthesize(replace(SMALL, batch_bytes=50_000)))
    assert len(cut) > 2 * len(small_batches)
    seen: set[int] = set()
    for batch in cut:
        ids = batch["request_id"].to_numpy()
        assert seen.isdisjoint(ids)
        seen.update(ids.tolist())
        assert np.count_nonzero(np.diff(ids)) + 1 == len(set(ids.tolist()))
    schema = synthetic_schema(SMALL)
    whole = pa.Table.from_batches([expand_to_lists(batch, schema) for batch in small_batches])
    assert pa.Table.from_batches([expand_to_lists(batch, schema) for batch in cut]).equals(whole)


def test_new_users_have_empty_histories():
    batches = list(synthesize(replace(SMALL, new_user_share=1.0, mean_requests_per_user=1.0)))
    for batch in batches:
        check_deduplicated(batch, synthetic_schema(SMALL))
        assert set(batch["history_end"].to_pylist()) == {0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"end_ts": datetime(2025, 1, 1)}, "end_ts"),
        ({"num_items": 100, "max_fan_out": 80}, "num_items"),
        ({"mean_fan_out": 0.5}, "mean_fan_out"),
        ({"max_history": 20_000}, "max_history"),
        ({"max_history": 100, "anchor_stride": 101}, "anchor_stride"),
        ({"late_event_share": 1.5}, "late_event_share"),
        ({"num_users": 0}, "num_users"),
        ({"mood_days": -1.0}, "mood_days"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        SyntheticLogConfig(**changes)


def test_the_end_is_recorded_with_its_zone():
    assert SyntheticLogConfig().end_ts.tzinfo is UTC
    assert np.array_equal(anchored_start(np.array([0, 5, 8, 9, 13]), 8, 4), [0, 0, 0, 4, 8])
