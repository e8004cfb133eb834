"""Making, replacing and dropping tables behaves the same on every catalog."""

from __future__ import annotations

import pytest
from pyiceberg.catalog import Catalog

from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.layout import Layout, create_table, table_buckets, table_layout, table_schema
from reqdedup.storage.read.table_source import TableSource


@pytest.mark.parametrize("layout", list(Layout))
def test_a_table_describes_itself(catalog: Catalog, namespace: str, schema: EngagementSchema, layout: Layout) -> None:
    created = create_table(catalog, f"{namespace}.t", schema, layout, num_buckets=3)
    table = catalog.load_table(f"{namespace}.t")
    assert table_schema(table) == schema
    assert table_layout(table) is layout
    assert table_buckets(table) == (3 if layout.is_bucketed else None)
    order = [table.schema().find_column_name(field.source_id) for field in table.sort_order().fields]
    assert order == (["user_id", "request_id", "item_id"] if layout.is_bucketed else [])
    assert [f.name for f in table.schema().fields] == list(schema.names)
    assert all(f.doc for f in table.schema().fields)
    assert table.schema() == created.schema()
    assert list(TableSource(table).batches()) == []
