"""What other engines leave in our tables and files: read right, or refused with what to do; never other values, never none."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import FloatType, LongType

from reqdedup.audit import audit_table
from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.dedup.encoding import expand_to_lists
from reqdedup.storage import (
    FileSource,
    Layout,
    TableSource,
    compact,
    create_table,
    write,
)
from reqdedup.storage.foreign.leaves import leaf_arrays
from reqdedup.storage.measure import checks
from reqdedup.training.plan import source_from_dict, source_to_dict
from tests.storage.small_log import log_schema, make_log, to_batch

SCHEMA = log_schema()
BATCH = to_batch(make_log(num_users=6))
ROWS = pa.Table.from_batches([BATCH])


def plain(batches) -> list[str]:
    return sorted(repr(row) for batch in batches for row in batch.to_pylist())


def with_column(name: str, values: pa.Array) -> pa.Table:
    return ROWS.set_column(ROWS.schema.get_field_index(name), name, values)


def blobs_as(kind: pa.DataType) -> pa.Table:
    table = ROWS
    for column in SCHEMA.blobs:
        index = table.schema.get_field_index(column.name)
        table = table.set_column(index, column.name, table[column.name].cast(pa.binary()).cast(kind))
    return table


FAT = pa.Table.from_batches([expand_to_lists(BATCH, SCHEMA)])
DELTA = {"history_item_id": "DELTA_LENGTH_BYTE_ARRAY", "history_ts": "DELTA_BYTE_ARRAY", "user_key": "DELTA_BYTE_ARRAY"}
WRITERS = {
    "no dictionary": (ROWS, {"use_dictionary": False}),
    "dictionaries that fall back": (
        ROWS,
        {"dictionary_pagesize_limit": 100, "data_page_size": 64, "write_batch_size": 4},
    ),
    "second page version": (ROWS, {"data_page_version": "2.0", "write_statistics": False}),
    "delta encodings": (ROWS, {"use_dictionary": False, "column_encoding": DELTA}),
    "many row groups": (ROWS, {"row_group_size": 7}),
    "large binary": (blobs_as(pa.large_binary()), {"store_schema": True}),
    "binary views": (blobs_as(pa.binary_view()), {"store_schema": True}),
    "nanoseconds": (with_column("request_ts", ROWS["request_ts"].cast(pa.timestamp("ns", "UTC"))), {}),
    "another zone": (with_column("request_ts", ROWS["request_ts"].cast(pa.timestamp("us", "Asia/Tokyo"))), {}),
    "int96 times": (ROWS, {"use_deprecated_int96_timestamps": True}),
    "encoded strings": (with_column("user_key", ROWS["user_key"].dictionary_encode()), {"store_schema": True}),
    "plain lists": (FAT, {"row_group_size": 50}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_other_writers_hold_the_same_rows(tmp_path, name):
    table, options = WRITERS[name]
    path = str(tmp_path / "file.parquet")
    pq.write_table(table, path, **{"store_schema": False, **options})
    source = FileSource([path], SCHEMA)
    assert plain(source.batches()) == plain([BATCH])
    users = np.unique(BATCH["user_id"].to_numpy())[2:4]
    found = sum(batch.num_rows for batch in source.batches(["item_id"], users=users))
    assert found == int(np.isin(BATCH["user_id"].to_numpy(), users).sum())


def with_list_views(name: str) -> pa.Table:
    """FAT with one column as views, which lie in no order and in part over one another."""
    column = FAT[name].combine_chunks()
    offsets, lengths = column.offsets.to_numpy(), column.value_lengths()
    order = np.random.default_rng(0).permutation(len(column))
    values = pa.concat_arrays([column.take(pa.array(order)).flatten(), column.values])
    starts = np.empty(len(column), np.int32)
    starts[order] = np.cumsum([0, *np.diff(offsets)[order][:-1]])
    starts[::2] = offsets[:-1][::2] + len(column.values)
    views = pa.ListViewArray.from_arrays(pa.array(starts), lengths, values)
    assert views.to_pylist() == column.to_pylist()
    return FAT.set_column(FAT.schema.get_field_index(name), name, views)


def test_list_views_are_read_audited_and_converted_as_the_lists_they_are(catalog, tmp_path):
    """pyarrow 26 casts a view to other lists, without an error (GH-50994)."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    table = with_list_views("history_item_id")
    pq.write_table(table, folder / "file.parquet", row_group_size=100)
    assert plain(FileSource([str(folder / "file.parquet")], SCHEMA).batches()) == plain([BATCH])
    for part in (table["history_item_id"].combine_chunks(), table["history_item_id"].chunk(0).slice(7)):
        (leaf,) = leaf_arrays("x", part).values()
        assert leaf.to_pylist() == part.to_pylist()
    mapping = ColumnMapping(user="user_id", request="request_id", item="item_id", time="request_ts", labels=["click"])
    convert_table(str(folder), catalog, "lake.new", mapping)
    read = TableSource(catalog.load_table("lake.new")).batches()
    assert plain(batch.select(SCHEMA.names) for batch in read) == plain([BATCH])


@pytest.mark.slow
def test_views_of_strings_are_audited_and_converted_as_strings(catalog, tmp_path):
    views = {"user_key": pa.string_view(), "item_key": pa.string_view(), "words": pa.list_(pa.string_view())}
    words = pa.array([["a", "Ж"], []])
    request = FAT["request_id"].to_numpy()
    table = FAT.append_column("words", words.take(pa.array(request % 2)))
    for name, kind in views.items():
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    pq.write_table(table, tmp_path / "file.parquet")
    assert pq.read_schema(tmp_path / "file.parquet").field("words").type == views["words"]
    path = str(tmp_path / "file.parquet")
    assert audit_table(path, request_key="request_id", user_key="user_id", item_key="item_id").table.rows == len(FAT)
    mapping = ColumnMapping(
        user="user_id", request="request_id", item="item_id", time="request_ts", labels=["click"], exclude=["words"]
    )
    convert_table(path, catalog, "lake.new", mapping)
    read = TableSource(catalog.load_table("lake.new")).batches()
    assert plain(batch.select(SCHEMA.names) for batch in read) == plain([BATCH])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("user_id", pa.nulls(len(ROWS), pa.int64()), "user_id: scalar of int64 without nulls required.*found .* nulls"),
        ("device", pa.nulls(len(ROWS), pa.int32()), "device: .* without nulls required"),
        ("device", pa.array([2**40] * len(ROWS)), "device: scalar of int32 .* required, another engine wrote int64"),
        ("item_id", pa.array(["a"] * len(ROWS)), "item_id: .* another engine wrote string"),
        ("history_ts", pa.nulls(len(ROWS), pa.binary()), "history_ts: sequence of int64 without nulls required"),
        ("history_ts", pa.array([None, *[[1]] * (len(ROWS) - 1)]), "history_ts: .*lists cannot be null, found 1"),
        ("history_ts", pa.array([[None]] * len(ROWS), pa.list_(pa.int64())), "history_ts: .*elements cannot be null"),
        ("request_ts", pa.array([1] * len(ROWS), pa.timestamp("ns", "UTC")), "request_ts: .* would lose data"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_name_the_file_and_the_column(tmp_path, name, values, message):
    path = str(tmp_path / "file.parquet")
    pq.write_table(with_column(name, values), path, store_schema=False)
    with pytest.raises(ValueError, match=rf"file.parquet: column {message}"):
        list(FileSource([path], SCHEMA).batches())


@pytest.fixture
def table(catalog):
    table = create_table(catalog, "lake.t", SCHEMA, Layout.BY_REQUEST, num_buckets=2)
    write(table, [BATCH])
    return table


def test_a_snapshot_that_is_not_there_is_an_error_and_not_an_empty_table(table):
    first = table.current_snapshot().snapshot_id
    write(table, [BATCH])
    table.maintenance.expire_snapshots().by_id(first).commit()
    table.refresh()
    for snapshot_id in (first, 7):
        with pytest.raises(ValueError, match=f"snapshot {snapshot_id} required, found none of that id among 1"):
            TableSource(table, snapshot_id=snapshot_id)


@pytest.mark.slow
def test_columns_that_were_added_or_moved_change_nothing(table):
    with table.update_schema() as update:
        update.add_column("new", LongType())
        update.move_first("click")
        update.update_column("device", LongType())
    write(table, [BATCH], mode="append")
    assert plain(TableSource(table).batches()) == sorted(plain([BATCH]) * 2)
    compact(table)
    assert plain(TableSource(table).batches()) == sorted(plain([BATCH]) * 2)


def test_a_renamed_column_is_named_by_reader_and_writer(table):
    with table.update_schema() as update:
        update.rename_column("device", "device_kind")
    with pytest.raises(ValueError, match=r"columns device required by its property .* renamed or dropped"):
        TableSource(table)
    others = [name for name in SCHEMA.names if name != "device"]
    assert plain(TableSource(table, columns=others).batches()) == plain([BATCH.select(others)])
    before = table.current_snapshot()
    with pytest.raises(ValueError, match=r"columns device required, found .*device_kind"):
        write(table, [BATCH])
    assert table.refresh().current_snapshot() == before
    with table.update_schema() as update:
        update.rename_column("device_kind", "device")
    assert plain(TableSource(table).batches()) == plain([BATCH])


@pytest.mark.slow
def test_a_column_of_the_same_name_is_not_the_dropped_one(table):
    first = table.current_snapshot().snapshot_id
    with table.update_schema() as update:
        update.delete_column("score")
    with table.update_schema() as update:
        update.add_column("score", FloatType())
    wanted = plain([with_column("score", pa.nulls(len(ROWS), pa.float32())).combine_chunks().to_batches()[0]])
    assert plain(TableSource(table).batches()) == wanted
    assert table.scan().to_arrow()["score"].null_count == len(ROWS)
    compact(table, force=True)
    assert plain(TableSource(table).batches()) == wanted
    assert plain(TableSource(table, snapshot_id=first).batches()) == plain([BATCH]), "at that time it was this column"


@pytest.mark.slow
def test_names_that_two_columns_swapped_are_read_by_field_id(table):
    """pyiceberg's scan is the reference; files from before have the old names, those from after the new ones."""
    for old, new in (("item_key", "x"), ("user_key", "item_key"), ("x", "user_key"), ("history_ts", "y")):
        with table.update_schema() as update:
            update.rename_column(old, new)
    with table.update_schema() as update:
        update.rename_column("history_item_id", "history_ts")
    with table.update_schema() as update:
        update.rename_column("y", "history_item_id")
    names = ["user_id", "item_id", "user_key", "item_key", "history_item_id", "history_ts"]

    def read() -> list[str]:
        return plain(batch.select(names) for batch in TableSource(table, columns=names).batches(names))

    def reference() -> list[str]:
        return plain(table.scan(selected_fields=tuple(names)).to_arrow().select(names).to_batches())

    assert read() == reference() != plain([BATCH.select(names)])
    run = json.loads(json.dumps(source_to_dict(TableSource(table))))
    assert plain(batch.select(names) for batch in source_from_dict(run).batches(names)) == reference()
    table.append(table.scan().to_arrow())
    assert read() == reference()
    users = np.unique(BATCH["user_id"].to_numpy())[:2]
    found = sum(batch.num_rows for batch in TableSource(table).batches(["item_id"], users=users))
    assert found == 2 * int(np.isin(BATCH["user_id"].to_numpy(), users).sum())


def test_a_renamed_key_is_followed_into_older_files(table):
    """user_id as another engine made it: another column of that type took the name."""
    with table.update_schema() as update:
        update.rename_column("user_id", "old_user")
    with pytest.raises(ValueError, match=r"columns user_id required by its property"):
        TableSource(table)


def change_buckets(table) -> None:
    with table.update_spec() as update:
        update.remove_field("user_bucket")
        update.add_field("user_id", BucketTransform(8), "by_8")


@pytest.mark.slow
def test_an_append_into_changed_partitions_is_refused_before_anything_is_written(table):
    change_buckets(table)
    with pytest.raises(ValueError, match=r"partition spec 0 of its files required by an append.* compact the table"):
        write(table, [BATCH], mode="append")
    assert plain(TableSource(table).batches()) == plain([BATCH])
    compact(table, force=True)
    write(table, [BATCH], mode="append")
    assert plain(TableSource(table).batches()) == sorted(plain([BATCH]) * 2)
    assert checks.buckets_right(table).ok


@pytest.mark.slow
def test_files_of_two_specs_are_read_after_a_compaction(table):
    change_buckets(table)
    fat = table.scan().to_arrow()
    table.append(fat)
    with pytest.raises(ValueError, match=r"files of one partition spec required, found 2 .*compact the table"):
        TableSource(table)
    compact(table, force=True)
    assert plain(TableSource(table).batches()) == sorted(plain([BATCH]) * 2)
    assert all(check(table).ok for check in (checks.buckets_right, checks.sort_order_true, checks.requests_whole))
