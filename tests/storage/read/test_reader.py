"""The reader gives what the snapshot's files hold: whole, by columns, by users; lists and blobs alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField

from reqdedup.dedup.encoding import check_deduplicated
from reqdedup.dedup.rows import compact_blobs, take_rows
from reqdedup.storage import (
    BatchSource,
    FileSource,
    Layout,
    TableSource,
    create_table,
    table_schema,
    write,
)
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.read import reader
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import files_of, new_table, rows_of


@pytest.fixture
def table(catalog, monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 50)
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log(num_users=40)))
    return table


def test_sources_are_batch_sources_and_their_batches_are_deduplicated(table):
    source = TableSource(table)
    assert isinstance(source, BatchSource)
    assert source.schema == log_schema()
    for batch in source.batches():
        check_deduplicated(batch, source.schema)
    assert source.num_rows == sum(batch.num_rows for batch in source.batches())


def test_row_groups_and_batches_go_together(table):
    source = TableSource(table)
    groups = source.row_groups()
    assert len(groups) > 8
    assert [group.bucket for group in groups] == sorted(group.bucket for group in groups)
    for group, batch in zip(groups, source.batches(), strict=True):
        assert source.read_row_group(group).equals(batch)
        assert group.num_rows == batch.num_rows


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.SORTED])
def test_short_row_groups_read_together_hold_the_same_rows_and_each_value_once(catalog, monkeypatch, layout):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 50)
    table = new_table(catalog, layout)
    write(table, to_batches(make_log(num_users=40)))
    source = TableSource(table)
    groups = source.row_groups()
    alone = list(source.stream(groups))
    together = list(source.stream(groups, rows_together=200))
    assert pa.Table.from_batches(together).to_pylist() == pa.Table.from_batches(alone).to_pylist()
    if layout is Layout.SORTED:  # its lists are read in pieces
        assert len(together) == len(alone)
        return
    assert max(batch.num_rows for batch in together) <= 200
    assert len(together) < len(alone) / 2
    for batch in together:
        check_deduplicated(batch, source.schema)
        for column in source.schema.blobs:
            values = batch[column.name].dictionary.to_pylist()
            assert len(values) == len(set(values)) == len(set(batch[column.name].to_pylist()))
    monkeypatch.setattr(reader, "BLOB_BYTES_TOGETHER", 1)
    assert [batch.num_rows for batch in source.stream(groups, rows_together=200)] == [b.num_rows for b in alone]


def test_columns_come_in_schema_order_and_exactly_as_asked(table):
    source = TableSource(table)
    whole = pa.Table.from_batches(b.select(["item_id", "device"]) for b in source.batches())
    asked = pa.Table.from_batches(source.batches(["device", "item_id"]))
    assert asked.schema.names == ["item_id", "device"]
    assert asked.equals(whole)
    narrow = TableSource(table, columns=["click"])
    assert set(narrow.schema.names) == {"user_id", "request_id", "item_id", "request_ts", "click"}
    with pytest.raises(ValueError, match="no such columns: nonsense"):
        next(source.batches(["nonsense"]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_a_user_filter_reads_the_same_rows_as_a_full_scan_would_keep(catalog, layout):
    table = new_table(catalog, layout)
    batches = to_batches(make_log(num_users=30))
    write(table, batches)
    source = TableSource(table)
    all_users = sorted({user for batch in batches for user in batch.column("user_id").to_pylist()})
    for users in ([], all_users[:1], all_users[3:20:4], [*all_users, 12345], [-99]):
        wanted = [row for row in rows_of(batches) if row[0] in set(users)]
        assert rows_of(source.batches(users=np.array(users, np.int64))) == wanted
        kept = [row[8] for row in wanted]
        without_id = source.batches(["user_embedding"], users=pa.array(users, pa.int64()))
        found = [blob for batch in without_id for blob in batch.column("user_embedding").to_pylist()]
        assert sorted(found) == sorted(kept)


def test_a_user_filter_skips_other_buckets_and_row_groups(table, monkeypatch):
    source = TableSource(table)
    users = np.concatenate([batch.column("user_id").to_numpy() for batch in source.batches(["user_id"])])
    groups = source.row_groups(users=users[:1])
    assert 0 < len(groups) < len(source.row_groups()) / 4
    assert {group.bucket for group in groups} == {source.row_groups()[0].bucket}
    for batch in source.batches(users=users[:1]):
        for name in ("history_item_id", "user_embedding"):
            array = batch.column(name)
            assert len(set(array.indices.to_pylist())) == len(array.dictionary), "no unused values travel on"
    other = next(path for path in source.paths if path not in {group.path for group in groups})
    Path(other.removeprefix("file://")).unlink()
    assert list(TableSource(table).batches(users=users[:1])), "files of other buckets are not opened"


@pytest.mark.slow
def test_an_older_snapshot_is_read_as_it_was(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    old = to_batches(make_log(seed=0))
    first = write(table, old).snapshot_id
    open_before = TableSource(table)
    write(table, to_batches(make_log(seed=1)))
    assert rows_of(TableSource(table, snapshot_id=first).batches()) == rows_of(old)
    assert rows_of(open_before.batches()) == rows_of(old), "a reader keeps its snapshot while others write"
    assert rows_of(TableSource(table).batches()) != rows_of(old)


@pytest.mark.slow
def test_files_without_a_catalog(table):
    source = FileSource(files_of(table), table_schema(table))
    assert rows_of(source.batches()) == rows_of(TableSource(table).batches())
    users = np.unique(np.concatenate([b.column("user_id").to_numpy() for b in source.batches(["user_id"])]))[:3]
    assert rows_of(source.batches(users=users)) == rows_of(TableSource(table).batches(users=users))


@pytest.mark.slow
def test_through_file_io_as_from_object_storage(table, monkeypatch):
    """Anything but a local path goes through the table's FileIO."""
    local = rows_of(TableSource(table).batches())
    monkeypatch.setattr("reqdedup.storage.read.open_file.local_path", lambda path: None)
    assert rows_of(TableSource(table).batches()) == local


def test_tables_of_others_are_refused_with_the_way_out(catalog):
    catalog.create_namespace("other")
    table = catalog.create_table("other.plain", Schema(NestedField(1, "user_id", LongType(), required=True)))
    with pytest.raises(ValueError, match=r"reqdedup.schema required.*reqdedup convert"):
        TableSource(table)
    with pytest.raises(ValueError, match="not a reqdedup table"):
        create_table(catalog, "other.plain", log_schema(), Layout.SORTED)


def test_delete_files_are_refused(table, monkeypatch):
    tasks = list(table.scan().plan_files())
    tasks[0].delete_files = {tasks[0].file}
    monkeypatch.setattr(type(table.scan()), "plan_files", lambda self: tasks)
    with pytest.raises(ValueError, match="delete files"):
        TableSource(table)


def test_a_missing_or_damaged_file_is_named(table):
    source = TableSource(table)
    first, second = (Path(path.removeprefix("file://")) for path in source.paths[:2])
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(ValueError, match=first.name):
        list(source.batches())
    first.unlink()
    with pytest.raises(FileNotFoundError, match=first.name):
        list(TableSource(table).batches())
    assert second.exists()


def test_files_of_another_writer_without_dictionaries_are_read_the_same(table, tmp_path):
    """A compaction by some other engine keeps values, not encodings."""
    source = TableSource(table)
    rows = pa.concat_tables([pq.ParquetFile(path.removeprefix("file://")).read() for path in source.paths])
    path = tmp_path / "plain.parquet"
    pq.write_table(rows, path, use_dictionary=False, row_group_size=100, data_page_size=500)
    assert rows_of(FileSource([str(path)], source.schema).batches()) == rows_of(source.batches())


def test_compaction_keeps_rows_and_drops_unused_values():
    array = pa.DictionaryArray.from_arrays(pa.array([3, 1, 3, 1], pa.int32()), pa.array([b"a", b"b", b"c", b"d"]))
    compact = compact_blobs(array)
    assert compact.to_pylist() == array.to_pylist()
    assert compact.dictionary.to_pylist() == [b"d", b"b"]
    batch = pa.record_batch({"x": array, "n": pa.array([0, 1, 2, 3])})
    for rows in (np.array([3]), np.array([False, True, False, True]), np.array([], np.int64)):
        taken = take_rows(batch, rows)
        wanted = batch.take(pa.array(np.flatnonzero(rows) if rows.dtype == bool else rows, pa.int64()))
        assert taken.to_pylist() == wanted.to_pylist()
        assert len(taken.column("x").dictionary) == len(set(taken.column("x").to_pylist()))
