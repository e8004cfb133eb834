"""Stage 2: the same rows in three physical forms, so that their sizes can be compared."""

import dagster as dg

import warehouse
from assets.metadata import column_lineage, write_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from assets.stages import CONTROL, STORAGE, TABLE, stage
from reqdedup.storage import TableSource


def _layout_asset(name: str, tags: dict[str, str], description: str) -> dg.AssetsDefinition:
    @stage(**STORAGE, name=name, deps=["raw_engagements"], tags=tags, description=description, kinds={"iceberg"})
    def layout(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
        raw_engagements = store.table("raw_engagements")
        raw = TableSource(raw_engagements)
        report = store.write(
            name,
            raw.schema,
            raw,
            num_buckets=run_recipe.get().num_buckets,
            progress=progress_log(context),
            properties=warehouse.made_from(raw_engagements=raw_engagements),
        )
        return store.result(name, **write_metadata(report), **column_lineage(store.table(name), raw_engagements))

    return layout


engagements_shuffled = _layout_asset(
    "engagements_shuffled",
    CONTROL,
    "The log as most people store it today: rows in random order, histories as plain lists, the writer's defaults. "
    "It is the control: the other layouts are measured against its bytes, and nothing reads it.",
)
engagements_sorted = _layout_asset(
    "engagements_sorted",
    CONTROL,
    "The same rows in the layout that Pinterest published: bucketed and sorted by user and request, plain lists, the "
    "writer's defaults. It shows what the order alone saves; nothing reads it.",
)
engagements_by_request = _layout_asset(
    "engagements_by_request",
    TABLE,
    "The table that training reads. The same rows in the same order, each history one binary value that is stored once "
    "per row group: rows only point at it, and the loader hands these pointers to the model. How to decode a value "
    "stands in the description of its column. Look at: bytes, beside those of engagements_shuffled.",
)
