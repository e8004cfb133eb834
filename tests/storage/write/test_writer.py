"""Every layout holds exactly the rows it was given, in the form it promises, whatever the input looked like."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.dedup.rows import each_value_once, take_rows
from reqdedup.schema import KEYS
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets
from reqdedup.storage.measure import checks
from tests.storage.small_log import log_schema, make_log, make_request, to_batch, to_batches
from tests.storage.tables import data_files_on_disk, files_of, new_table, rows_of

SORTED_LAYOUTS = [layout for layout in Layout if layout.is_bucketed]


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_every_layout_gives_back_the_rows_it_was_given(catalog, layout):
    batches = to_batches(make_log())
    table = new_table(catalog, layout)
    report = write(table, batches)
    assert rows_of(TableSource(table).batches()) == rows_of(batches)
    assert report.rows == sum(batch.num_rows for batch in batches)
    keys = {(row["user_id"], row["request_id"]) for batch in batches for row in batch.to_pylist()}
    assert (report.requests, report.users) == (len(keys), len({user for user, _ in keys}))
    assert report.bytes == sum(Path(path).stat().st_size for path in files_of(table))
    assert report.snapshot_id == table.current_snapshot().snapshot_id


@pytest.mark.slow
@pytest.mark.parametrize("layout", SORTED_LAYOUTS)
def test_sorted_files_keep_order_buckets_and_whole_requests(catalog, layout, monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 40)
    table = new_table(catalog, layout)
    write(table, to_batches(make_log(num_users=40)))
    seen = {}
    for task in table.scan().plan_files():
        file = pq.ParquetFile(task.file.file_path.removeprefix("file://"))
        rows = file.read(columns=list(KEYS)).to_pydict()
        keys = list(zip(*(rows[name] for name in KEYS)))
        assert keys == sorted(keys)
        assert set(buckets_of(np.array(rows["user_id"]), table_buckets(table))) == {task.file.partition[0]}
        for user, request, _ in keys:
            assert seen.setdefault((user, request), task.file.file_path) == task.file.file_path
        groups = [file.read_row_group(i, columns=["user_id", "request_id"]) for i in range(file.num_row_groups)]
        requests_of_groups = [set(zip(*group.to_pydict().values())) for group in groups]
        for before, after in pairwise(requests_of_groups):
            assert not before & after, "a request crosses a row group"
        if layout is Layout.BY_REQUEST:
            assert all(group.num_rows <= 40 or len(r) == 1 for group, r in zip(groups, requests_of_groups))
    assert len(seen) == len(make_log(num_users=40))


@pytest.mark.slow
def test_rows_and_requests_may_arrive_in_any_order_and_in_pieces(catalog):
    log = make_log(num_users=15)
    whole = to_batch(log)
    rng = np.random.default_rng(5)
    pieces = [to_batch(log, rows=rows) for rows in np.array_split(rng.permutation(whole.num_rows), 9)]
    straight, mixed = (create_table(catalog, f"test.{n}", log_schema(), Layout.BY_REQUEST) for n in ("a", "b"))
    write(straight, [whole])
    report = write(mixed, pieces)
    assert report.requests == len(log)
    assert checks.requests_whole(mixed).ok
    by_path = [TableSource(table).batches() for table in (straight, mixed)]
    for a, b in zip(*by_path, strict=True):  # the same bytes in the same order, whatever the order of arrival
        assert a.to_pylist() == b.to_pylist()


def test_one_request_larger_than_a_row_group_stays_whole(catalog, monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 16)
    rng = np.random.default_rng(0)
    events = rng.integers(1, 2**40, size=(5, 3))
    log = [make_request(rng, 7, request, fan_out=n, events=events, day=0) for request, n in [(1, 3), (2, 100), (3, 2)]]
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, [to_batch(log)])
    assert [group.num_rows for group in TableSource(table).row_groups()] == [3, 100, 2]


@pytest.mark.parametrize("layout", list(Layout))
def test_a_log_of_one_row_with_an_empty_history(catalog, layout):
    rng = np.random.default_rng(0)
    request = make_request(rng, -5, 1, fan_out=1, events=np.zeros((0, 3), np.int64), day=0)
    table = new_table(catalog, layout)
    write(table, [to_batch([request])])
    (batch,) = TableSource(table).batches()
    assert batch.num_rows == 1
    assert batch.column("history_ts").dictionary.to_pylist() == [b""]


def test_dictionaries_hold_each_sequence_once_per_row_group_in_order(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log()))
    for batch in TableSource(table).batches():
        for name in ("history_item_id", "user_embedding"):
            array = batch.column(name)
            values, codes = array.dictionary.to_pylist(), array.indices.to_pylist()
            assert len(set(values)) == len(values)
            assert list(dict.fromkeys(codes)) == list(range(len(values))), "in order of first use, none unused"
    for path in files_of(table):
        footer = pq.ParquetFile(path).metadata
        for index in range(footer.num_row_groups):
            leaf = footer.row_group(index).column(footer.schema.names.index("history_item_id"))
            assert leaf.has_dictionary_page
            assert leaf.statistics is None


@pytest.mark.slow
def test_long_sequences_do_not_fall_back_from_the_dictionary(catalog):
    rng = np.random.default_rng(1)
    log = [
        make_request(rng, user, user, fan_out=3, events=rng.integers(0, 2**40, size=(40_000, 3)), day=0)
        for user in range(12)
    ]
    table = new_table(catalog, Layout.BY_REQUEST, num_buckets=1)
    write(table, [to_batch(log)])
    (path,) = files_of(table)
    leaf = pq.ParquetFile(path).metadata.row_group(0).column(5)
    assert leaf.path_in_schema == "history_item_id"
    distinct_bytes = 12 * 40_000 * 8  # of 36 rows; Parquet's default limit of a dictionary is 1 MB
    assert distinct_bytes < leaf.total_uncompressed_size < distinct_bytes + 10_000


def test_dictionary_bytes_bound_a_row_group(catalog, monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_BYTES", 3_000)
    table = new_table(catalog, Layout.BY_REQUEST, num_buckets=1)
    write(table, to_batches(make_log(num_users=30)))
    sizes = [batch.column("history_item_id").dictionary.nbytes for batch in TableSource(table).batches()]
    assert len(sizes) > 3
    assert max(sizes) < 3_000 + 64 * 8


@pytest.mark.slow
def test_replace_is_idempotent_and_append_adds(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    first, second = to_batches(make_log(seed=0)), to_batches(make_log(seed=1))
    write(table, first)
    before = checks.content_checksum(TableSource(table))
    write(table, first)
    assert checks.content_checksum(TableSource(table)) == before
    assert len(table.snapshots()) == 2, "one commit per write"
    write(table, second, mode="append")
    assert rows_of(TableSource(table).batches()) == rows_of([*first, *second])
    assert checks.sort_order_true(table).ok
    assert checks.buckets_right(table).ok
    write(table, second)
    assert rows_of(TableSource(table).batches()) == rows_of(second)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_replacing_with_nothing_empties_the_table(catalog, layout):
    table = new_table(catalog, layout)
    assert write(table, []).snapshot_id is None
    write(table, to_batches(make_log(num_users=3)))
    write(table, [to_batch(make_log(num_users=3)).slice(0, 0)])
    assert list(TableSource(table).batches()) == []


@pytest.mark.slow
def test_shuffled_rows_are_in_random_order_fixed_by_the_seed(catalog):
    batches = to_batches(make_log(num_users=40))
    orders = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        table = create_table(catalog, f"test.{name}", log_schema(), Layout.SHUFFLED)
        write(table, batches, seed=seed)
        orders[name] = np.concatenate([b.column("request_id").to_numpy() for b in TableSource(table).batches()])
    assert np.array_equal(orders["a"], orders["b"])
    assert not np.array_equal(orders["a"], orders["c"])
    arrival = np.concatenate([batch.column("request_id").to_numpy() for batch in batches])
    neighbours = np.mean(orders["a"][1:] == orders["a"][:-1])
    assert neighbours < 0.2 * np.mean(arrival[1:] == arrival[:-1])
    rank = np.argsort(np.argsort(arrival, kind="stable"), kind="stable")
    assert abs(np.corrcoef(orders["a"], rank)[0, 1]) < 0.1


@pytest.mark.slow
def test_the_control_is_written_as_pyiceberg_would(catalog):
    """Same rows, same order, through `table.append`: the same bytes per column."""
    ours, theirs = (create_table(catalog, f"test.{n}", log_schema(), Layout.SHUFFLED) for n in ("ours", "theirs"))
    write(ours, to_batches(make_log(num_users=60, max_history=200)))
    theirs.append(ours.scan().to_arrow())
    sizes = []
    for table in (ours, theirs):
        (path,) = files_of(table)
        footer = pq.ParquetFile(path).metadata
        group = footer.row_group(0)
        assert footer.num_row_groups == 1
        sizes.append(
            {group.column(i).path_in_schema: group.column(i).total_compressed_size for i in range(group.num_columns)}
        )
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_arrival_keeps_the_order_of_arrival_inside_each_day(catalog):
    batches = to_batches(make_log())
    table = new_table(catalog, Layout.ARRIVAL)
    write(table, batches)
    arrived = [(row["request_ts"].date(), row["item_id"]) for batch in batches for row in batch.to_pylist()]
    for task in table.scan().plan_files():
        rows = pq.ParquetFile(task.file.file_path.removeprefix("file://")).read(columns=["request_ts", "item_id"])
        (day,) = {time.date() for time in rows.column("request_ts").to_pylist()}
        assert rows.column("item_id").to_pylist() == [item for item_day, item in arrived if item_day == day]


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_an_error_on_the_way_leaves_the_old_rows_and_no_files(catalog, tmp_path, layout):
    table = new_table(catalog, layout)
    write(table, to_batches(make_log(seed=0)))
    before, files = checks.content_checksum(TableSource(table)), data_files_on_disk(tmp_path)

    def interrupted():
        yield from to_batches(make_log(seed=1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(table, interrupted())

    def stop_late(progress):
        if progress.phase == "verify":
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(table, to_batches(make_log(seed=1)), progress=stop_late)
    again = catalog.load_table(table.name())
    assert checks.content_checksum(TableSource(again)) == before
    assert data_files_on_disk(tmp_path) == files


@pytest.mark.slow
def test_what_rows_were_made_from_lands_with_them_or_not_at_all(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log()), properties={"made-from": "one"})

    def broken():
        yield from to_batches(make_log())
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write(table, broken(), properties={"made-from": "two"})
    assert table.refresh().properties["made-from"] == "one"
    write(table, to_batches(make_log()), properties={"made-from": "two"})
    assert catalog.load_table(table.name()).properties["made-from"] == "two"


def test_the_spill_leaves_nothing_behind(catalog, tmp_path):
    spill_dir = tmp_path / "spill"
    spill_dir.mkdir()
    table = new_table(catalog, Layout.BY_REQUEST)
    sizes = []

    def look(progress):
        sizes.append(len(list(spill_dir.iterdir())))

    assert write(table, to_batches(make_log()), spill_dir=spill_dir, progress=look).spill_bytes > 0
    assert not any(sizes), "the spill has no name, so that not even a kill leaves it behind"
    assert not list(spill_dir.iterdir())


def test_progress_tells_phase_and_rows(catalog):
    seen = []
    batches = to_batches(make_log())
    write(new_table(catalog, Layout.BY_REQUEST), batches, progress=seen.append)
    assert list(dict.fromkeys(progress.phase for progress in seen)) == ["spill", "write", "verify", "commit"]
    num_rows = sum(batch.num_rows for batch in batches)
    assert [p.rows_done for p in seen if p.phase == "spill"][-1] == num_rows
    assert [(p.rows_done, p.rows_total) for p in seen if p.phase == "write"][-1] == (num_rows, num_rows)
    assert "rows" in str(seen[-1])


@pytest.mark.slow
def test_a_conflicting_write_is_refused_and_changes_nothing(catalog, tmp_path):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log(seed=0)))
    other = catalog.load_table(table.name())

    def overtaken(progress):
        if progress.phase == "commit":
            write(other, to_batches(make_log(seed=2)), mode="append")

    with pytest.raises(RuntimeError, match="another writer"):
        write(table, to_batches(make_log(seed=1)), progress=overtaken)
    now = catalog.load_table(table.name())
    assert rows_of(TableSource(now).batches()) == rows_of(
        [*to_batches(make_log(seed=0)), *to_batches(make_log(seed=2))]
    )
    assert sorted(files_of(now)) == [str(path) for path in data_files_on_disk(tmp_path)]
    write(now, to_batches(make_log(seed=1)), mode="append")  # an append is never in the way of another


def broken(batch: pa.RecordBatch, name: str, array: pa.Array) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    return batch.set_column(index, pa.field(name, array.type), array)


def test_wrong_batches_are_refused_with_the_column_named(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    log = make_log(num_users=4)
    batch = to_batch(log)
    devices = batch.column("device").to_numpy().copy()
    devices[np.flatnonzero(batch.column("request_id").to_numpy() == batch.column("request_id")[0].as_py())[-1]] += 1
    blobs = batch.column("history_ts")
    odd = pa.DictionaryArray.from_arrays(blobs.indices, pa.array([b"123"] * len(blobs.dictionary)))
    short = pa.DictionaryArray.from_arrays(blobs.indices, pa.array([b"12345678" * 99] * len(blobs.dictionary)))
    none = pa.DictionaryArray.from_arrays(blobs.indices, pa.array([None] * len(blobs.dictionary), pa.binary()))
    wrong = {
        "device": broken(batch, "device", pa.array(devices)),
        "history_ts.*whole int64s": broken(batch, "history_ts", odd),
        "sequences of one length": broken(batch, "history_ts", short),
        "history_ts.*null": broken(batch, "history_ts", none),
        "item_id": batch.drop_columns(["item_id"]),
        "user_id": broken(batch, "user_id", batch.column("user_id").cast(pa.int64()).cast(pa.string())),
    }
    for words, one in wrong.items():
        with pytest.raises(ValueError, match=words):
            write(table, [one])
    assert table.current_snapshot() is None


def test_a_request_whose_parts_disagree_is_refused(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    rng = np.random.default_rng(0)
    events = rng.integers(1, 2**40, size=(5, 3))
    request = make_request(rng, 7, 1, fan_out=4, events=events, day=0)
    later = {**request, "events": events[:-1], "items": request["items"] + 1}
    with pytest.raises(ValueError, match=r"history_item_id.*request 1 of user 7"):
        write(table, [to_batch([request]), to_batch([later])])
    write(table, [to_batch([request]), to_batch([{**request, "items": request["items"] + 1}])])
    assert checks.requests_whole(table) == checks.CheckResult(True, 8, "8 rows in 1 requests, each in one place")


def test_options_are_checked(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    with pytest.raises(ValueError, match="layout BY_REQUEST required"):
        write(table, [], Layout.SORTED)
    with pytest.raises(ValueError, match="'replace' or 'append'"):
        write(table, [], mode="overwrite")
    with pytest.raises(ValueError, match=r"pass \[batch\]"):
        write(table, to_batch(make_log(num_users=2)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", None),
        ("bucket", "rows of bucket 1 required, row group 0 differs"),
        ("order", r"rows in \(user_id, request_id, item_id\) order required, row group 0 differs"),
        ("groups", r"rows in \(user_id, request_id, item_id\) order required, row group 1 differs"),
        ("cut", "a new request at the start of a row group required, row group 1 differs"),
    ],
)
def test_rows_that_are_read_back_in_another_bucket_or_order_are_not_committed(catalog, tmp_path, fault, message):
    table = new_table(catalog, Layout.BY_REQUEST, num_buckets=2)
    batch = to_batch(make_log(num_users=30))
    user, request, item = (batch.column(name).to_numpy() for name in KEYS)
    order = np.lexsort((item, request, user))
    rows = take_rows(batch, order[buckets_of(user[order], 2) == 0])
    if fault == "order":
        rows = take_rows(rows, np.array([1, 0, *range(2, rows.num_rows)]))
    keys = list(zip(*(rows.column(name).to_pylist() for name in KEYS[:2])))
    at = next(row for row in range(8, len(keys)) if (keys[row] == keys[row - 1]) == (fault == "cut"))
    parts = [rows.slice(0, at), rows.slice(at)]
    with StagedFiles(table) as files:
        for part in reversed(parts) if fault == "groups" else parts:
            bucket = 1 if fault == "bucket" else 0
            files.write(bucket, pa.Table.from_batches([each_value_once(part)]), target_bytes=2**30)
        if message is None:
            assert files.verify(num_rows=len(keys), num_requests=len(set(keys))) == len(set(keys))
            return
        with pytest.raises(IntegrityError, match=message):
            files.verify(num_rows=len(keys), num_requests=None)
    assert not data_files_on_disk(tmp_path)
