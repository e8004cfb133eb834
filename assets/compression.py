"""Stage 3: what each layout costs, beside the limit."""

import dagster as dg

import warehouse
from assets.metadata import compression_metadata
from assets.resources import Warehouse
from assets.run_recipe import ComparedLayout, RunRecipe
from assets.stages import REPORT, STORAGE, WHEN_INPUTS_CHANGE, stage
from reqdedup import storage

COMPARED = ("engagements_shuffled", *(f"engagements_{layout.value}" for layout in ComparedLayout))


@stage(
    **STORAGE,
    deps=list(COMPARED),
    tags=REPORT,
    automation_condition=WHEN_INPUTS_CHANGE,
    kinds={"iceberg", "matplotlib"},
)
def compression_report(
    context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe
) -> dg.MaterializeResult:
    """What storing each request once saves: bytes of every column in every layout, from the files' own footers.

    The **store-once limit** is what the distinct values take if each is written once. Look at: how much smaller
    `by_request` is than `shuffled`, and how close it comes to its limit; then, column by column, which ones pay.
    """
    chosen = [f"engagements_{layout.value}" for layout in run_recipe.layouts]
    tables = {name: store.table(name) for name in COMPARED if name in (COMPARED[0], *(chosen or COMPARED))}
    if not warehouse.check_one_origin(tables, store.table("raw_engagements")):
        context.log.warning(
            "raw_engagements is newer than the tables that are compared: the report is of its older rows"
        )
    report = storage.compression_report(tables)
    overlap = storage.user_overlap(next(reversed(tables.values())))
    store.write_report("compression_report", report)
    return store.result("compression_report", **compression_metadata(report, overlap))
