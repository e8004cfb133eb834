"""Stage 3: what each layout costs, beside the limit."""

import dagster as dg

import warehouse
from assets.metadata import compression_metadata
from assets.resources import Warehouse
from reqdedup import storage

COMPARED = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")


@dg.asset(deps=list(COMPARED), group_name="layouts", kinds={"iceberg"})
def compression_report(context: dg.AssetExecutionContext, store: Warehouse) -> dg.MaterializeResult:
    """Bytes of every column in every layout, from the files' own footers, with the store-once limit."""
    tables = {name: store.table(name) for name in COMPARED}
    if not warehouse.check_one_origin(tables, store.table("raw_engagements")):
        context.log.warning(
            "raw_engagements is newer than the tables that are compared: the report is of its older rows"
        )
    report = storage.compression_report(tables)
    overlap = storage.user_overlap(tables["engagements_by_request"])
    store.write_report("compression_report", report)
    return store.result(**compression_metadata(report, overlap))
