"""Stage 3: what each layout costs, beside the limit."""

from __future__ import annotations

import dagster as dg

from assets.metadata import markdown_table
from assets.resources import Warehouse
from reqdedup import storage

COMPARED = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")


@dg.asset(deps=list(COMPARED), group_name="layouts", kinds={"iceberg"})
def compression_report(store: Warehouse) -> dg.MaterializeResult:
    """Bytes of every column in every layout, from the files' own footers, with the store-once limit."""
    report = storage.compression_report({name: store.table(name) for name in COMPARED})
    store.write_report("compression_report", report)
    return dg.MaterializeResult(metadata={"report": markdown_table(report), "dagster/row_count": report.num_rows})
