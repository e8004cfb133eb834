"""Stage 1: the log as it arrives."""

import dagster as dg

from assets.impressions import add_mature_impressions
from assets.metadata import write_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from assets.stages import LOG, STORAGE, stage
from reqdedup.logs import read_log, synthesize, synthetic_schema


@stage(**STORAGE, deps=["impressions"], tags=LOG, kinds={"iceberg"})
def raw_engagements(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """The log as it arrives: one row per impression, by day, in the order of arrival. All tables are made from it.

    Rows that cannot be read go to `rejected_engagements` with reason, file and line. What servers showed and is mature
    by now is added, labelled. Look at: rows per request, which is what deduplication can save, and rejected rows.
    """
    recipe, record = run_recipe.get(), run_recipe.log_record()
    if not run_recipe.logs:
        report = store.write(
            "raw_engagements",
            synthetic_schema(recipe.log),
            synthesize(recipe.log),
            num_buckets=recipe.num_buckets,
            progress=progress_log(context),
            properties=record,
        )
        return store.result(
            "raw_engagements",
            log=f"synthetic, recipe {recipe.name}",
            **write_metadata(report),
            **add_mature_impressions(store),
        )
    log = read_log(
        run_recipe.logs,
        max_history=recipe.max_history,
        **run_recipe.read_options(),
    )
    done = store.ingest(
        "raw_engagements",
        log,
        num_buckets=recipe.num_buckets,
        progress=progress_log(context),
        properties=record,
    )
    for reason, count in done.rejected.items():
        context.log.warning(f"{count:,} rows rejected: {reason}")
    rejected = sum(done.rejected.values())
    return store.result(
        "raw_engagements",
        log=run_recipe.logs,
        rejected_rows=rejected,
        **write_metadata(done.written),
        **add_mature_impressions(store),
    )
