"""Compaction, expiry and sweep, deleting users, conversion, bucket counts: the same on every catalog, on storage too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.schema import EngagementSchema, Level
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    compact,
    create_feature_table,
    create_table,
    delete_user,
    expire_snapshots,
    rebucket,
    sweep_orphans,
    write,
    write_rejects,
)
from reqdedup.storage.iceberg.catalogs import open_catalog
from reqdedup.storage.iceberg.files import file_key, reachable_files
from reqdedup.storage.iceberg.layout import table_buckets
from reqdedup.storage.measure import checks
from reqdedup.storage.tasks import groups
from tests.catalogs.files import catalog_in, no_file_larger_than
from tests.catalogs.rows import plain, same, stored_files
from tests.servers.seaweedfs import SeaweedFS
from tests.storage.feature_tables import COUNT, of_request
from tests.storage.maintenance.marked_user import KEY, LOG, MARKED, NEEDLES, OTHERS
from tests.storage.maintenance.searched_bytes import search_bytes
from tests.storage.small_log import log_schema, to_batches

NOW = timedelta(0)
NUM_BUCKETS = 3


@pytest.fixture
def table(catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]) -> Table:
    """Two appends, so that every bucket has two small files that share users."""
    return two_appends(catalog, namespace, schema, batches)


def two_appends(catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]) -> Table:
    table = create_table(catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    for parity in range(2):
        keep = [pa.array(batch.column("request_id").to_numpy() % 2 == parity) for batch in batches]
        write(table, [batch.filter(one) for batch, one in zip(batches, keep)], mode="append")
    return table


@pytest.mark.slow
def test_appends_are_compacted_and_what_nothing_needs_leaves_the_storage(
    catalog: Catalog, table: Table, batches: list[pa.RecordBatch]
) -> None:
    report = compact(table, one_commit=True)
    assert (report.old_files, report.files) == (2 * NUM_BUCKETS, NUM_BUCKETS)
    orphan = f"{table.location()}/data/orphan.parquet"
    with table.io.new_output(orphan).create() as stream:
        stream.write(b"left by a killed writer")
    expired = expire_snapshots(table, older_than=NOW)
    assert (len(expired.expired), expired.files["data"]) == (2, 2 * NUM_BUCKETS)
    swept = sweep_orphans(table, older_than=-NOW, dry_run=False)
    assert file_key(orphan) in {file_key(path) for path in swept.files["path"].to_pylist()}
    seen = catalog.load_table(table.name())
    assert {file_key(path) for path in reachable_files(seen)} == keys_on_storage(seen)
    assert same(plain(batches), plain(TableSource(seen).batches()))
    assert checks.requests_whole(seen).ok


@pytest.mark.slow
def test_a_deleted_user_is_in_no_byte_of_the_storage(catalog: Catalog, namespace: str) -> None:
    main = create_table(catalog, f"{namespace}.main", log_schema(), Layout.BY_REQUEST, num_buckets=4)
    write(main, to_batches(LOG))
    side = create_feature_table(catalog, f"{namespace}.side", main, [COUNT], by_position=True)
    add_request_feature(main, side, of_request)
    rejected = pa.table({"reason": ["time"], "detail": [""], "file": ["a"], "line": [1], "raw": [f"{KEY},never"]})
    rejects = write_rejects(catalog, f"{namespace}.rejected_engagements", rejected)
    before = [search_bytes(content_on_storage(one), NEEDLES) for one in (main, rejects)]
    assert before[0]["parquet"] == set(NEEDLES)
    assert "user key" in before[1]["parquet"]
    reports = delete_user([side, main, rejects], MARKED, erase=True)
    assert [report.rows for report in reports] == [1, 8, 2]
    for one in (main, side, rejects):
        found = search_bytes(content_on_storage(catalog.load_table(one.name())), NEEDLES)
        assert not any(found.values()), one.name()
    seen, features = catalog.load_table(main.name()), catalog.load_table(side.name())
    assert same(plain(to_batches(OTHERS)), plain(TableSource(seen).batches()))
    joined = bucket_join(seen, features, how="inner")
    assert sum(batch.num_rows for batch in joined.batches()) == TableSource(seen).num_rows


@pytest.mark.slow
def test_another_table_of_the_catalog_is_converted_row_for_row(
    catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    theirs = create_table(catalog, f"{namespace}.theirs", schema, Layout.SHUFFLED)
    write(theirs, batches)
    mapping = ColumnMapping(
        user="user_id",
        request="request_id",
        item="item_id",
        time="request_ts",
        labels=[column.name for column in schema.at(Level.LABEL)],
        levels={column.name: Level.REQUEST for column in schema.at(Level.REQUEST) if column.name != "request_ts"},
    )
    report = convert_table(theirs, catalog, f"{namespace}.ours", mapping, num_buckets=NUM_BUCKETS)
    ours = catalog.load_table(f"{namespace}.ours")
    assert report.checksum == checks.content_checksum(TableSource(ours))
    wanted = plain(batches)
    assert same(wanted, plain(TableSource(ours).batches()).select(wanted.column_names))


@pytest.mark.slow
def test_rows_are_the_same_in_other_buckets_and_old_snapshots_stay(
    catalog: Catalog, table: Table, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    before, late = table.current_snapshot(), catalog.load_table(table.name())
    report = rebucket(table, 2 * NUM_BUCKETS)
    seen = catalog.load_table(table.name())
    assert table_buckets(seen) == report.num_buckets == 2 * NUM_BUCKETS
    assert same(plain(batches), plain(TableSource(seen).batches()))
    assert before is not None
    assert same(plain(batches), plain(TableSource(seen, snapshot_id=before.snapshot_id).batches()))
    assert late.metadata.default_spec_id != seen.metadata.default_spec_id
    write(late, batches[:1], mode="append")  # opened before, and put into the new buckets
    assert checks.buckets_right(catalog.load_table(table.name())).ok


@pytest.mark.slow
def test_a_full_disk_leaves_the_table_as_it_was(
    tmp_path: Path, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    table = two_appends(catalog_in(tmp_path), namespace, schema, batches)
    user = int(batches[0].column("user_id")[0].as_py())
    before, files = table.metadata_location, keys_on_storage(table)
    for change in (lambda: delete_user(table, user), lambda: compact(table), lambda: rebucket(table, 2)):
        with no_file_larger_than(100), pytest.raises(OSError, match=r"space"):
            change()
        assert table.refresh().metadata_location == before
        assert keys_on_storage(table) == files
    assert len(compact(table).buckets) == NUM_BUCKETS


@pytest.mark.servers
def test_a_token_that_expires_during_a_compaction_costs_nothing(
    seaweedfs: SeaweedFS,
    namespace: str,
    schema: EngagementSchema,
    batches: list[pa.RecordBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(groups, "BUCKETS_TOGETHER", 1)
    lasting = open_catalog("lasting", seaweedfs.rest_properties)
    two_appends(lasting, namespace, schema, batches)
    token = lasting._session.auth.auth_manager._token  # type: ignore[attr-defined]
    fixed = {key: value for key, value in seaweedfs.rest_properties.items() if key not in ("credential", "scope")}
    catalog = open_catalog("fixed", {**fixed, "token": token})

    def expire(done: int, total: int) -> None:
        if done == 2:  # the first is committed
            catalog._session.auth.auth_manager._token = "expired"  # type: ignore[attr-defined]

    with pytest.raises(PermissionError, match="wrong or has expired; set a new `token`") as caught:
        compact(catalog.load_table(f"{namespace}.t"), progress=expire)
    assert token not in str(caught.value)
    seen = lasting.load_table(f"{namespace}.t")
    assert same(plain(batches), plain(TableSource(seen).batches()))
    report = compact(seen)
    assert (len(report.buckets), report.left_alone) == (NUM_BUCKETS - 1, 1)
    assert same(plain(batches), plain(TableSource(seen).batches()))


def keys_on_storage(table: Table) -> set[str]:
    scheme = "s3://" if table.location().startswith("s3") else ""
    return {file_key(scheme + path) for path in stored_files(table)}


def content_on_storage(table: Table) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file under the table's location."""
    scheme = table.location().partition("://")[0] if "://" in table.location() else "file"
    filesystem: pafs.FileSystem = table.io.fs_by_scheme(scheme, None)  # type: ignore[attr-defined]
    paths = stored_files(table)
    assert len(paths) > 3
    for path in paths:
        yield path, filesystem.open_input_stream(path).read()
