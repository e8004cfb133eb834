"""Stage 2: the same rows in three physical forms, so that their sizes can be compared."""

import dagster as dg

import warehouse
from assets.metadata import write_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from reqdedup.storage import TableSource


def _layout_asset(name: str, description: str) -> dg.AssetsDefinition:
    @dg.asset(name=name, deps=["raw_engagements"], group_name="layouts", description=description, kinds={"iceberg"})
    def layout(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
        raw_engagements = store.table("raw_engagements")
        raw = TableSource(raw_engagements)
        report = store.write(
            name,
            raw.schema,
            raw.batches(),
            num_buckets=run_recipe.get().num_buckets,
            progress=progress_log(context),
            properties=warehouse.made_from(raw_engagements=raw_engagements),
        )
        return store.result(**write_metadata(report))

    return layout


engagements_shuffled = _layout_asset(
    "engagements_shuffled", "Control: IID order, plain lists, the writer's defaults. What people store today."
)
engagements_sorted = _layout_asset(
    "engagements_sorted", "The published layout: bucket, user_id, request_id; plain lists, the writer's defaults."
)
engagements_by_request = _layout_asset(
    "engagements_by_request", "The table training reads: sequences as dictionary-encoded blobs, each stored once."
)
