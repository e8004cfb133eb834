"""The second code location: a log that arrives day by day, and what keeps its table in shape.

The graph of `pipelines.definitions` stays unpartitioned beside it, so that `dg launch --assets '*'` needs no partition.
Sensors and schedules are off until somebody switches them on.

| variable | meaning | default |
|---|---|---|
| REQDEDUP_FIRST_DAY | first day that there is a log of | 2026-01-01 |
| REQDEDUP_LOGS | folder with a folder per day, named 2026-11-03 | a synthetic log per day |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

import assets.own_tables
from assets.daily import NAME, daily_asset, day_folders, days_of, files_of_day
from pipelines.environment import Environment
from pipelines.progress import log_readably, progress_logger
from pipelines.resources import deployed

SWEEP_AFTER_DAYS, EXPIRE_AFTER_DAYS = 3.0, 7.0


def build_definitions(environment: Environment) -> dg.Definitions:
    """Ingest by days for one environment, its sensor and schedules."""
    log_readably()
    days = days_of(environment.first_day)
    engagements = daily_asset(days)
    ingest = dg.define_asset_job(
        "ingest_day", selection=[engagements], description="Append what is new of a day. A backfill takes several."
    )
    namespace = environment.resolved_namespace
    return dg.Definitions(
        assets=[engagements],
        jobs=[ingest, *assets.own_tables.JOBS],
        schedules=[
            dg.build_schedule_from_partitioned_job(
                ingest, name="every_day", hour_of_day=4, description="The day before, at 04:00 UTC."
            ),
            *upkeep(f"{namespace}.{NAME}"),
        ],
        sensors=[new_log_files(ingest, environment.logs, days)],
        executor=dg.in_process_executor,
        loggers={"console": progress_logger},
        resources=deployed(environment),
    )


def upkeep(table: str) -> list[dg.ScheduleDefinition]:
    """Compaction, expiry and sweep of a table, one after the other in the night."""
    jobs = {job.name: job for job in assets.own_tables.JOBS}

    def nightly(job: str, minute: int, description: str, **config: object) -> dg.ScheduleDefinition:
        return dg.ScheduleDefinition(
            name=f"{job}_nightly",
            job=jobs[job],
            cron_schedule=f"{minute} 5 * * *",
            run_config={"ops": {job: {"config": {"table": table, "apply": True, **config}}}},
            description=description,
        )

    return [
        nightly("compact", 0, f"Compacts {table} at 05:00 UTC."),
        nightly("expire", 20, f"Expires snapshots of {table} at 05:20 UTC.", older_than_days=EXPIRE_AFTER_DAYS),
        nightly("sweep", 40, f"Removes orphan files of {table} at 05:40 UTC.", older_than_days=SWEEP_AFTER_DAYS),
    ]


def new_log_files(
    job: dg.UnresolvedAssetJobDefinition, logs: str, days: dg.PartitionsDefinition
) -> dg.SensorDefinition:
    """A run for every day whose folder has other files than when the sensor looked last."""

    @dg.sensor(
        name="new_log_files",
        job=job,
        minimum_interval_seconds=60,
        description=f"Starts a run for each day whose folder under {logs or 'REQDEDUP_LOGS'} has new files.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        folders = day_folders(logs)
        seen = json.loads(context.cursor or "{}")
        found = {day: listing for day, folder in folders.items() if (listing := _listing(folder))}
        known = set(days.get_partition_keys(current_time=None))
        for day, listing in found.items():
            if seen.get(day) != listing and day in known:
                yield dg.RunRequest(run_key=f"{day} {listing}", partition_key=day)
        if found == seen:
            yield dg.SkipReason(f"{len(found):,} days as before" if logs else "no log: set REQDEDUP_LOGS")
        context.update_cursor(json.dumps(found))

    return sensor


def _listing(folder: Path) -> str:
    """A digest of the names and sizes of a day's files; empty if there are none."""
    files = [f"{path.name} {path.stat().st_size}" for path in files_of_day(folder)]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()[:16] if files else ""


defs = build_definitions(Environment.from_os())
