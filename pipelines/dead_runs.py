"""Runs whose process is gone are failed, so that the history tells the truth and the queue goes on.

Dagster 1.13's monitoring asks the run launcher, and the default launcher cannot say whether a run's process lives: a
run that was killed (out of memory, SIGKILL, a power cut) stays STARTED for ever and blocks all that are queued. Every
run of the graph carries its process as a tag. Runs that never start, or never stop when told to, are Dagster's own to
find (`dagster.yaml`).
"""

from __future__ import annotations

import time

import dagster as dg

from assets.resources import PROCESS_TAG
from warehouse import Process

START_S = 180.0
"""A run that has started and has not said by then which process it is died on the way."""

EVERY_S = 15


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fail the started runs whose process is gone; one sentence for each. Another machine's runs are left alone."""
    failed = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        run, tag = record.dagster_run, record.dagster_run.tags.get(PROCESS_TAG)
        if tag is not None:
            process = Process.from_json(tag)
            found = f"{process} is gone" if process.is_alive() is False else ""
        else:
            silent = record.start_time is not None and time.time() - record.start_time > START_S
            found = f"no process has worked on it {START_S:.0f} s after its start" if silent else ""
        now = instance.get_run_by_id(run.run_id)
        if found and now is not None and now.status is run.status:  # it may have ended in the meantime
            failed.append(
                f"run {run.run_id}: {found}; it was killed, or its machine was short of memory: launch it again"
            )
            instance.report_run_failed(run, failed[-1])
    return failed


@dg.sensor(minimum_interval_seconds=EVERY_S, default_status=dg.DefaultSensorStatus.RUNNING)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Fails runs that were killed, so that the queue goes on; launches nothing."""
    return dg.SkipReason("; ".join(fail_dead_runs(context.instance)) or "every started run is alive")
