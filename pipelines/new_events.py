"""The sensor for new files of events. Off until somebody switches it on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import dagster as dg

from reqdedup.sequences.sources import event_files


def new_event_files(job: dg.UnresolvedAssetJobDefinition, events: str) -> dg.SensorDefinition:
    """A run when the place of the events has other files than when the sensor looked last.

    A file that was delivered is not delivered again, so files are added and never appended to.
    """

    @dg.sensor(
        name="new_event_files",
        job=job,
        minimum_interval_seconds=60,
        description=f"Delivers new files of {events or 'REQDEDUP_EVENTS'} and brings the timeline to them.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if not events:
            return dg.SkipReason("no events: set REQDEDUP_EVENTS and REQDEDUP_SEQUENCES")
        try:
            names = [source.name for source in event_files(Path(events))]
        except ValueError as error:
            return dg.SkipReason(str(error))
        found = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        if found == context.cursor:
            return dg.SkipReason(f"{len(names):,} files as before")
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=found)], cursor=found)

    return sensor
