"""Every stage after the write behaves the same on every catalog: checks, report, join, features, sample, small tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

import warehouse
from reqdedup import storage
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.storage.measure import checks
from tests.catalogs.conftest import new_namespace
from tests.catalogs.rows import plain, same, stored_files

NUM_BUCKETS = 3
REQUEST = ["user_id", "request_id"]


@dataclass(frozen=True)
class Written:
    """The same log in three layouts, and its rows."""

    catalog: Catalog
    namespace: str
    tables: dict[str, Table]
    rows: pa.Table

    @property
    def main(self) -> Table:
        return self.tables["by_request"]


@pytest.fixture(scope="module")
def written(catalog: Catalog, schema: EngagementSchema, batches: list[pa.RecordBatch]) -> Written:
    namespace, tables = new_namespace(), {}
    for layout in (Layout.SHUFFLED, Layout.SORTED, Layout.BY_REQUEST):
        table = create_table(catalog, f"{namespace}.{layout.value}", schema, layout, num_buckets=NUM_BUCKETS)
        write(table, batches)
        tables[layout.value] = table
    return Written(catalog, namespace, tables, plain(batches))


def test_checks_hold_and_checksums_are_equal_over_the_layouts(written: Written) -> None:
    found = {str(checks.content_checksum(TableSource(table))) for table in written.tables.values()}
    assert len(found) == 1
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right, checks.no_future_events):
        result = check(written.main)
        assert result.ok, result.detail
        assert result.checked > 0


def test_the_report_counts_the_bytes_of_the_snapshots_files(written: Written) -> None:
    report = storage.compression_report(written.tables)
    assert set(report["table"].to_pylist()) == set(written.tables)
    for name, table in written.tables.items():
        of_table = report.filter(pc.and_(pc.equal(report["table"], name), pc.is_valid(report["level"])))
        in_manifests = sum(sum((task.file.column_sizes or {}).values()) for task in table.scan().plan_files())
        assert pc.sum(of_table["compressed_bytes"]).as_py() >= in_manifests > 0
        assert set(of_table["rows"].to_pylist()) == {len(written.rows)}


@pytest.mark.slow
def test_a_feature_is_written_beside_the_table_and_joined_back(written: Written) -> None:
    main, feature = written.main, storage.recent_event_counts(7 * 86_400)
    files = sorted(stored_files(main))
    side = storage.create_feature_table(written.catalog, f"{written.namespace}.features", main, [feature.column])
    for _ in range(2):  # a second time replaces the first
        report = storage.add_request_feature(main, side, feature)
    requests = written.rows.group_by(REQUEST).aggregate([])
    assert report.requests == len(requests)
    side = written.catalog.load_table(f"{written.namespace}.features")
    assert side.scan().to_arrow().num_rows == len(requests)
    assert sorted(stored_files(written.catalog.load_table(f"{written.namespace}.by_request"))) == files

    joined = storage.bucket_join(main, side)
    found = plain(joined.batches())
    assert same(written.rows, found.select(written.rows.column_names))
    wanted = side.scan().to_arrow()
    wanted = (
        found.select([*REQUEST, "item_id"])
        .join(wanted, REQUEST)
        .sort_by([(k, "ascending") for k in (*REQUEST, "item_id")])
    )
    assert found[feature.column.name].combine_chunks().equals(wanted[feature.column.name].combine_chunks())
    assert joined.counts.missing_rows == 0


def test_a_sample_holds_whole_users_and_can_be_written(written: Written) -> None:
    sample = storage.sample_users(written.main, rate=0.4, seed=1)
    users = sample.user_ids.to_numpy() if isinstance(sample.user_ids, pa.Array) else np.asarray(sample.user_ids)
    assert 0 < len(users) < len(pc.unique(written.rows["user_id"]))
    table = create_table(
        written.catalog, f"{written.namespace}.sample", sample.schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS
    )
    write(table, sample.batches())
    wanted = written.rows.filter(pc.is_in(written.rows["user_id"], pa.array(users)))
    assert same(wanted, plain(TableSource(table).batches()))


@pytest.mark.slow
def test_rejected_rows_are_replaced_as_a_whole(catalog: Catalog, namespace: str) -> None:
    catalog.create_namespace(namespace)
    identifier = f"{namespace}.rejected_engagements"
    columns = ["reason", "detail", "file", "line", "raw"]
    for count in (2, 3, 0):
        rows = pa.table(
            [["null id"] * count, ["x"] * count, ["a.csv"] * count, list(range(count)), ["…"] * count], columns
        )
        table = storage.write_rejects(catalog, identifier, rows)
        assert table.scan().to_arrow().num_rows == count
        assert catalog.load_table(identifier).scan().to_arrow()["line"].to_pylist() == list(range(count))


@pytest.mark.slow
def test_tables_of_the_warehouse(catalog: Catalog, namespace: str, schema: EngagementSchema) -> None:
    with pytest.raises(ValueError, match="materialize the asset raw_engagements"):
        warehouse.load_table(catalog, namespace, "raw_engagements")
    for name, layout in warehouse.ENGAGEMENT_TABLES.items():
        warehouse.replace_engagement_table(catalog, namespace, name, schema, [], num_buckets=2)
        assert storage.table_layout(warehouse.load_table(catalog, namespace, name)) is layout
    for rows in (pa.table({"a": [1, 2]}), pa.table({"a": [3]}), pa.table({"a": [1], "b": ["x"]}), pa.table({"b": [1]})):
        warehouse.write_report_table(catalog, namespace, "report", rows)
        assert warehouse.load_table(catalog, namespace, "report").scan().to_arrow().to_pylist() == rows.to_pylist()
