"""Stage 1: the log as it arrives."""

from dataclasses import asdict
from functools import partial

import dagster as dg

from assets.impressions import add_mature_impressions
from assets.metadata import write_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from assets.stages import LOG, STORAGE, stage
from reqdedup.logs import read_log, synthesize, synthetic_schema
from reqdedup.logs.synthetic_events import synthetic_requests
from reqdedup.sequences.training_table import table_schema, with_histories


@stage(**STORAGE, deps=["impressions", "user_events"], tags=LOG, kinds={"iceberg"})
def raw_engagements(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """The log as it arrives: one row per impression, by day, in the order of arrival. All tables are made from it.

    Rows that cannot be read go to `rejected_engagements` with reason, file and line. What servers showed and is mature
    by now is added, labelled. With `histories`, or recipe events, each request's history is what had arrived before it
    of a sequence. Look at: rows per request, which is what deduplication can save, and rejected rows.
    """
    recipe, record = run_recipe.get(), run_recipe.log_record()
    sequence = run_recipe.histories or recipe.histories
    histories = partial(with_histories, store.catalog(), store.resolved_namespace, sequence) if sequence else None
    if not run_recipe.logs:
        schema, batches = synthetic_schema(recipe.log), synthesize(recipe.log)
        if histories is not None:
            rows = synthetic_requests(recipe.events, num_requests=recipe.num_requests, fan_out=recipe.fan_out)
            schema, batches = histories(table_schema(rows, labels=["click"]), rows.to_batches())
        report = store.write(
            "raw_engagements",
            schema,
            batches,
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
        histories=histories,
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
        **({} if done.urls is None else {**asdict(done.urls), "merged_ids": done.urls.merged}),
        **write_metadata(done.written),
        **add_mature_impressions(store),
    )
