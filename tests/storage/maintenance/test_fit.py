"""Forms that were chosen by rows of one kind are renewed once rows of another kind have come."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.storage import Layout, TableSource, compact, create_table, table_health, write
from reqdedup.storage.iceberg.encodings import stored_choices
from reqdedup.storage.measure import checks

SCHEMA = EngagementSchema(
    (
        Column(name="user_id", dtype="int64", level=Level.KEY),
        Column(name="request_id", dtype="int64", level=Level.KEY),
        Column(name="item_id", dtype="int64", level=Level.KEY),
        Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
        Column(name="price", dtype="int64", level=Level.ITEM),
    )
)


def rows(first_request: int, price: np.ndarray) -> pa.RecordBatch:
    row = np.arange(len(price))
    columns = [row // 500, first_request + row // 50, row % 50]
    times = pa.array(first_request + row // 50, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.record_batch([*map(pa.array, columns), times, pa.array(price)], names=list(SCHEMA.names))


@pytest.mark.slow
def test_health_says_when_forms_fit_no_more_and_compaction_renews_them(catalog: Catalog) -> None:
    catalog.create_namespace("n")
    table = create_table(catalog, "n.t", SCHEMA, Layout.BY_REQUEST, num_buckets=1)
    rng = np.random.default_rng(0)
    write(table, [rows(0, rng.integers(0, 4, 4_000))], mode="append")
    before = stored_choices(table.refresh().properties)
    assert not [line for line in table_health(table).advice if "chosen" in line]
    write(table, [rows(10_000, rng.integers(-(2**62), 2**62, 20_000))], mode="append")
    assert stored_choices(table.refresh().properties) == before
    (said,) = [line for line in table_health(table).advice if "chosen" in line]
    forms, _, _ = said.partition(" fit the newest rows no more")
    assert forms.startswith("compact --force: the forms chosen for ")
    assert "price" in forms
    content = checks.content_checksum(TableSource(table))
    compact(table, force=True)
    after = stored_choices(table.refresh().properties)
    assert after["price"] != before["price"]
    assert checks.content_checksum(TableSource(table)) == content
    assert not [line for line in table_health(table).advice if "chosen" in line]
