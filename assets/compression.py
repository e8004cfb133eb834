"""Stage 3: what each layout costs, beside the limit."""

import dagster as dg

from assets.metadata import compression_metadata
from assets.resources import Warehouse
from reqdedup import storage

COMPARED = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")


@dg.asset(deps=list(COMPARED), group_name="layouts", kinds={"iceberg"})
def compression_report(store: Warehouse) -> dg.MaterializeResult:
    """Bytes of every column in every layout, from the files' own footers, with the store-once limit."""
    tables = {name: store.table(name) for name in COMPARED}
    report = storage.compression_report(tables)
    overlap = storage.user_overlap(tables["engagements_by_request"])
    store.write_report("compression_report", report)
    return store.result(**compression_metadata(report, overlap))
