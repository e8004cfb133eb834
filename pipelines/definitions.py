"""The code location: the graph of `assets/`, its checks, jobs and schedule, set up for this environment."""

from __future__ import annotations

import dagster as dg

import assets.checks
import assets.compression
import assets.features
import assets.impressions
import assets.ingest
import assets.layouts
import assets.own_tables
import assets.rerank
import assets.sampling
import assets.sequences
import assets.serving
import assets.serving_store
import assets.training
import assets.urls
import assets.user_states
from pipelines.dead_runs import dead_runs
from pipelines.environment import Environment
from pipelines.new_events import new_event_files
from pipelines.progress import log_readably, progress_logger
from pipelines.resources import deployed

STAGES = (
    assets.impressions,
    assets.ingest,
    assets.urls,
    assets.layouts,
    assets.compression,
    assets.features,
    assets.sampling,
    assets.training,
    assets.serving,
    assets.rerank,
    assets.serving_store,
    assets.user_states,
    assets.sequences,
)

everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all(),
    description="The whole graph, from log to report.",
)
storage_only = dg.define_asset_job(
    "storage_only",
    selection=dg.AssetSelection.assets("compression_report").upstream(),
    description="The log, its layouts and the compression report; needs no torch.",
)
sequences = dg.define_asset_job(
    "sequences",
    selection=dg.AssetSelection.assets("raw_events", "user_events", "sequence_report"),
    description="Events that are new, into the timeline, and how good it is.",
)
daily = dg.ScheduleDefinition(
    name="daily",
    job=everything,
    cron_schedule="0 3 * * *",
    description="Every night at 03:00 UTC; off until switched on.",
)


def build_definitions(environment: Environment) -> dg.Definitions:
    """The graph for one environment. Unpartitioned, in-process: `dg launch --assets '*'` needs no more arguments."""
    log_readably()
    return dg.Definitions(
        assets=dg.load_assets_from_modules(STAGES),
        asset_checks=dg.load_asset_checks_from_modules(
            [
                assets.checks,
                assets.rerank,
                assets.sequences,
                assets.serving_store,
                assets.training,
                assets.urls,
                assets.user_states,
            ]
        ),
        jobs=[everything, storage_only, sequences, *assets.own_tables.JOBS],
        schedules=[daily],
        sensors=[dead_runs, new_event_files(sequences, environment.events)],
        executor=dg.in_process_executor,
        loggers={"console": progress_logger},
        resources=deployed(environment),
    )


defs = build_definitions(Environment.from_os())
