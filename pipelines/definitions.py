"""The code location: the graph of `assets/`, its checks, jobs and schedule, set up for this environment."""

from __future__ import annotations

from pathlib import Path

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
import assets.serving
import assets.serving_store
import assets.training
import assets.user_states
from assets.resources import RunRecipe, Warehouse
from pipelines.dead_runs import dead_runs
from pipelines.environment import Environment
from pipelines.progress import log_readably, progress_logger
from reqdedup.environment import LakePlace

STAGES = (
    assets.impressions,
    assets.ingest,
    assets.layouts,
    assets.compression,
    assets.features,
    assets.sampling,
    assets.training,
    assets.serving,
    assets.rerank,
    assets.serving_store,
    assets.user_states,
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
daily = dg.ScheduleDefinition(
    name="daily",
    job=everything,
    cron_schedule="0 3 * * *",
    description="Every night at 03:00 UTC; off until switched on.",
)


class DeployedWarehouse(Warehouse):
    """The lake that the environment names, read when it is opened, so that Dagster never holds a credential.

    Another data_dir, given at launch, is an argument: it stands alone beside an embedded lake.
    """

    def place(self) -> LakePlace:
        lake = Environment.from_os().lake
        given = lake.data_dir is not None and lake.data_dir.resolve() != Path(self.data_dir).resolve()
        return super().place() if given else lake


class DeployedLake(assets.own_tables.OwnLake):
    """The same lake for the jobs on tables of one's own."""

    def default_place(self) -> LakePlace:
        return Environment.from_os().lake


def build_definitions(environment: Environment) -> dg.Definitions:
    """The graph for one environment. Unpartitioned, in-process: `dg launch --assets '*'` needs no more arguments."""
    log_readably()
    # At launch, so that a run's configuration of one field leaves the others as they are here, not at their class's
    # defaults.
    run_recipe = RunRecipe.configure_at_launch(
        recipe=environment.recipe,
        logs=environment.logs,
        preset=environment.preset or None,
        mapping=environment.mapping,
        strict=environment.strict,
        max_rejects=environment.max_rejects,
    )
    return dg.Definitions(
        assets=dg.load_assets_from_modules(STAGES),
        asset_checks=dg.load_asset_checks_from_modules(
            [assets.checks, assets.rerank, assets.serving_store, assets.user_states]
        ),
        jobs=[everything, storage_only, *assets.own_tables.JOBS],
        schedules=[daily],
        sensors=[dead_runs],
        executor=dg.in_process_executor,
        loggers={"console": progress_logger},
        resources={
            "store": DeployedWarehouse.configure_at_launch(
                run_recipe=run_recipe,
                namespace=environment.namespace,
                data_dir=str(environment.data_dir),
                take_over=environment.take_over,
            ),
            "run_recipe": run_recipe,
            "own_lake": DeployedLake.configure_at_launch(),
        },
    )


defs = build_definitions(Environment.from_os())
