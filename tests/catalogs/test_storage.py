"""Writing and reading behaves the same on every catalog, and another reader sees the same rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.environment import LakePlace
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, replace_table, table_layout, write
from tests.catalogs.rows import plain, same, scanned, stored_files
from warehouse.catalogs import open_catalog

NUM_BUCKETS = 3


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_every_layout_holds_the_rows_that_were_written(
    catalog_config: LakePlace,
    namespace: str,
    schema: EngagementSchema,
    batches: list[pa.RecordBatch],
    layout: Layout,
) -> None:
    identifier = f"{namespace}.t"
    table = create_table(open_catalog(catalog_config), identifier, schema, layout, num_buckets=NUM_BUCKETS)
    report = write(table, batches, layout)
    wanted = plain(batches)
    assert report.rows == len(wanted)

    loaded = open_catalog(catalog_config).load_table(identifier)
    assert loaded.current_snapshot() is not None
    assert same(wanted, plain(TableSource(loaded).batches()))
    assert same(wanted, scanned(loaded, schema))
    files = [task.file for task in loaded.scan().plan_files()]
    assert len(files) == report.files
    assert sum(file.record_count for file in files) == report.rows
    assert sum(file.file_size_in_bytes for file in files) == report.bytes
    assert len([path for path in stored_files(loaded) if path.endswith(".parquet")]) == report.files


@pytest.mark.slow
def test_append_adds_and_replace_replaces_and_the_old_snapshot_stays_readable(
    catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    table = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    first, rest = split_by_user(batches)
    one = write(table, first)
    two = write(table, rest, mode="append")
    assert same(plain(batches), plain(TableSource(table).batches()))
    three = write(table, first, mode="replace")
    loaded = catalog.load_table(f"{namespace}.t")
    assert same(plain(first), plain(TableSource(loaded).batches()))
    assert same(plain(batches), plain(TableSource(loaded, snapshot_id=two.snapshot_id).batches()))
    assert [s.snapshot_id for s in loaded.snapshots()] == [one.snapshot_id, two.snapshot_id, three.snapshot_id]


def test_reading_some_columns_of_some_users(
    catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    table = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    write(table, batches)
    wanted = plain(batches)
    users = pc.unique(wanted["user_id"]).to_numpy()[::4]
    columns = ["user_id", "request_id", "item_id", "history_item_id", "click"]
    found = plain(TableSource(table).batches(columns, users=users))
    assert same(wanted.filter(pc.is_in(wanted["user_id"], pa.array(users))).select(columns), found)
    few = TableSource(table, columns=["click"])
    assert set(few.schema.names) == {"user_id", "request_id", "item_id", "request_ts", "click"}
    assert list(TableSource(table).batches(users=np.array([-1]))) == []


def test_a_failed_write_leaves_the_table_and_its_folder_as_they_were(
    catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    table = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    report = write(table, batches)
    before = sorted(stored_files(table))

    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches
        raise ValueError("the log ends here")

    with pytest.raises(ValueError, match="the log ends here"):
        write(table, broken())
    loaded = catalog.load_table(f"{namespace}.t")
    current = loaded.current_snapshot()
    assert current is not None
    assert current.snapshot_id == report.snapshot_id
    assert sorted(stored_files(loaded)) == before


@pytest.mark.slow
def test_two_writers_lose_no_row(
    catalog_config: LakePlace, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    identifier = f"{namespace}.t"
    create_table(open_catalog(catalog_config), identifier, schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    first, rest = split_by_user(batches)
    one, two = (open_catalog(catalog_config).load_table(identifier) for _ in range(2))

    def meanwhile() -> Iterator[pa.RecordBatch]:
        yield from rest
        write(one, first, mode="append")

    write(two, meanwhile(), mode="append")
    assert same(plain(batches), plain(TableSource(open_catalog(catalog_config).load_table(identifier)).batches()))


@pytest.mark.slow
def test_of_two_writers_that_replace_the_later_is_told_and_changes_nothing(
    catalog_config: LakePlace, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    identifier = f"{namespace}.t"
    table = create_table(open_catalog(catalog_config), identifier, schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    write(table, batches)
    first, rest = split_by_user(batches)
    one, two = (open_catalog(catalog_config).load_table(identifier) for _ in range(2))

    def meanwhile() -> Iterator[pa.RecordBatch]:
        yield from rest
        write(one, first)

    with pytest.raises(RuntimeError, match=r"another writer changed the table.*repeat the write"):
        write(two, meanwhile())
    loaded = open_catalog(catalog_config).load_table(identifier)
    assert same(plain(first), plain(TableSource(loaded).batches()))
    in_snapshots = set(loaded.inspect.all_files()["file_path"].to_pylist())
    on_storage = [path for path in stored_files(loaded) if path.endswith(".parquet")]
    assert len(on_storage) == len(in_snapshots)


@pytest.mark.slow
def test_another_form_comes_with_its_rows_in_one_commit(
    catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    old = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    first = write(old, batches).snapshot_id
    for layout, num_buckets in ((Layout.BY_REQUEST, NUM_BUCKETS + 1), (Layout.SORTED, 2), (Layout.ARRIVAL, 1)):
        replace_table(catalog, f"{namespace}.t", schema, layout, batches, num_buckets=num_buckets)
        new = catalog.load_table(f"{namespace}.t")
        assert table_layout(new) is layout
        assert same(plain(batches), plain(TableSource(new).batches()))
    assert new.metadata.table_uuid == old.metadata.table_uuid
    assert new.snapshot_by_id(first) is not None
    assert new.scan(snapshot_id=first).to_arrow().num_rows == new.scan().to_arrow().num_rows


def split_by_user(batches: list[pa.RecordBatch]) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
    """The rows of even users, and of odd ones."""
    parts: tuple[list[pa.RecordBatch], list[pa.RecordBatch]] = ([], [])
    for batch in batches:
        odd = batch.column("user_id").to_numpy() % 2 == 1
        for part, keep in zip(parts, (~odd, odd)):
            part.append(batch.filter(pa.array(keep)))
    return parts
