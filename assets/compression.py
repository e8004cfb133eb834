"""Stage 3: what each layout costs, beside the limit."""

import dagster as dg

import warehouse
from assets.metadata import compression_metadata
from assets.resources import Warehouse
from assets.stages import REPORT, STORAGE
from reqdedup import storage

COMPARED = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")


@dg.asset(**STORAGE, deps=list(COMPARED), tags=REPORT, kinds={"iceberg", "matplotlib"})
def compression_report(context: dg.AssetExecutionContext, store: Warehouse) -> dg.MaterializeResult:
    """What storing each request once saves: bytes of every column in every layout, from the files' own footers.

    The **store-once limit** is what the distinct values take if each is written once. Look at: how much smaller
    `by_request` is than `shuffled`, and how close it comes to its limit; then, column by column, which ones pay.
    """
    tables = {name: store.table(name) for name in COMPARED}
    if not warehouse.check_one_origin(tables, store.table("raw_engagements")):
        context.log.warning(
            "raw_engagements is newer than the tables that are compared: the report is of its older rows"
        )
    report = storage.compression_report(tables)
    overlap = storage.user_overlap(tables["engagements_by_request"])
    store.write_report("compression_report", report)
    return store.result("compression_report", **compression_metadata(report, overlap))
