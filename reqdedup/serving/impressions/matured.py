"""Which days of the impressions can still give rows: what a run notes, so that the next one reads these alone.

    days from the last cutoff on             were too young, or have come since
    days with files newer than the last run  their log was collected late
    days with impressions that gave no row   their history, or a column, was not there: it may be now

Everything is read by a first run, into another table, and if rows of the table were replaced or deleted since. The note
is a property of the table `impressions`, set after the rows are in: a run that was killed leaves the one before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, LessThan, Or
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation

from reqdedup.schema import REQUEST_TS
from reqdedup.storage.iceberg.errors import is_conflict
from reqdedup.storage.iceberg.manifests import entries_of, manifests_of
from reqdedup.storage.iceberg.same_requests import OPERATION

MATURED_PROPERTY = "reqdedup.matured"
"""Of the table `impressions`: the note of the last run, JSON."""
DAY_US = 86_400 * 10**6


@dataclass(frozen=True, kw_only=True)
class Note:
    """table, snapshot_id: the target's.  sequence: number of the newest commit of impressions then.
    from_day: the cutoff's, since 1970.  left: earlier days with impressions that gave no row."""

    table: str
    snapshot_id: int | None
    sequence: int
    from_day: int = 0
    left: tuple[int, ...] = ()


def note_of(impressions: Table, target: Table) -> Note:
    """Where both tables stand, to be taken before they are read."""
    snapshot = target.current_snapshot()
    return Note(
        table=str(target.metadata.table_uuid),
        snapshot_id=None if snapshot is None else snapshot.snapshot_id,
        sequence=impressions.last_sequence_number,
    )


def keep_note(impressions: Table, target: Table, note: Note) -> None:
    """Set the property, with where the target stands now that the rows are in.

    Nothing is set if rows of the target went since it was read, or if others changed `impressions` meanwhile: then the
    note before stays, and the next run reads more. A table of format 1 does not number its commits and gets no note.
    """
    if impressions.metadata.format_version < 2:
        return
    if note.snapshot_id is not None and not _only_grew(target.refresh(), note):
        return
    note = replace(note, snapshot_id=note_of(impressions, target.refresh()).snapshot_id)
    text = json.dumps(asdict(note))
    if impressions.properties.get(MATURED_PROPERTY) == text:
        return
    try:
        with impressions.transaction() as change:
            change.set_properties({MATURED_PROPERTY: text})
    except Exception as error:
        if not is_conflict(error):
            raise


def still_open(impressions: Table, target: Table) -> BooleanExpression:
    """The impressions that can give rows now or later."""
    text = impressions.properties.get(MATURED_PROPERTY)
    note = None if text is None else Note(**json.loads(text))
    if note is None or not _only_grew(target, note):
        return AlwaysTrue()
    come = _days_since(impressions, note.sequence)
    return AlwaysTrue() if come is None else on_days({*note.left, *come}, note.from_day)


def on_days(days: Iterable[int], from_day: int | None = None, *, column: str = REQUEST_TS) -> BooleanExpression:
    """Whether a moment is on one of these days since 1970, at least one unless `from_day` is given, or since that."""
    parts: list[BooleanExpression] = []
    if from_day is not None:
        parts.append(GreaterThanOrEqual(column, from_day * DAY_US))  # type: ignore  # pyiceberg takes plain values
    earlier = np.array(sorted(day for day in set(days) if from_day is None or day < from_day), np.int64)
    for run in np.split(earlier, np.flatnonzero(np.diff(earlier) > 1) + 1):
        if len(run):
            first, end = int(run[0]) * DAY_US, (int(run[-1]) + 1) * DAY_US
            parts.append(And(GreaterThanOrEqual(column, first), LessThan(column, end)))  # type: ignore  # as above
    return parts[0] if len(parts) == 1 else Or(*parts)


def day_of(moments_us: Any) -> Any:
    """Days since 1970 of microseconds since then."""
    return moments_us // DAY_US


def _only_grew(target: Table, note: Note) -> bool:
    """Whether every request that was in the table when the note was taken still is, as far as snapshots tell."""
    if str(target.metadata.table_uuid) != note.table or note.snapshot_id is None:
        return False
    snapshot = target.current_snapshot()
    at = None if snapshot is None else snapshot.snapshot_id
    while at != note.snapshot_id:
        snapshot = None if at is None else target.snapshot_by_id(at)
        if snapshot is None or snapshot.summary is None:
            return False
        if snapshot.summary.operation is not Operation.APPEND and snapshot.summary.get(OPERATION) != "compact":
            return False
        at = snapshot.parent_snapshot_id
    return True


def _days_since(impressions: Table, sequence: int) -> set[int] | None:
    """Days of the files that later commits brought; None if a file is of no day."""
    days: set[int] = set()
    for manifest in manifests_of(impressions, impressions.current_snapshot()):
        if (manifest.sequence_number or 0) <= sequence:
            continue
        for entry in entries_of(impressions, manifest):
            if (entry.sequence_number or 0) > sequence:
                day = entry.data_file.partition[0] if len(entry.data_file.partition) else None
                if not isinstance(day, int):
                    return None
                days.add(day)
    return days
