"""The audit reads a table through its catalog and its own FileIO, wherever the files are."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.audit import audit_table
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, create_table, write


@pytest.mark.slow
def test_the_audit_says_the_same_of_a_table_in_any_catalog(
    catalog: Catalog, namespace: str, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    table = create_table(catalog, f"{namespace}.t", schema, Layout.SORTED, num_buckets=3)
    written = write(table, batches)
    report = audit_table(table, request_key="request_id", user_key="user_id", num_buckets=3)
    assert (report.table.rows, report.requests.requests, report.requests.users) == (
        written.rows,
        written.requests,
        written.users,
    )
    assert report.table.file_bytes == written.bytes
    assert report.requests.order == "grouped"
    assert report.layout("SORTED").bytes == pytest.approx(report.table.compressed_bytes, rel=0.03)
