"""User sequences as plain loops over plain dicts: the definition that every runtime must equal, event for event.

    delivered -> `accept` (refuse, number, order) -> `timelines` (once, wanted, enriched, appended) -> `sequence_at`

An event is a dict of the columns of `EventLog.dtypes`; times are microseconds since 1970, UTC. The order is that of
delivery. `arrival_ts` never falls along it: where the clock of arrival ran backwards, the event counts as arriving
when the one before it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from reqdedup.sequences.columns import POLARS_TYPES
from reqdedup.sequences.definition import (
    ARRIVAL_TS,
    EVENT_ID,
    EVENT_TS,
    EVENT_TYPE,
    USER,
    EventLog,
    SequenceDefinition,
    computed_of,
    enrichments_of,
)
from reqdedup.sequences.executors import load_executor
from reqdedup.sequences.predicate import is_missing

Event = dict[str, Any]

DAY_US = 86_400_000_000
EARLIEST_US = 631_152_000_000_000
"""1990: an earlier time is absurd."""
FUTURE_US = DAY_US
"""How far after its arrival an event may say that it happened: a clock that is a day wrong."""
HORIZON_US = 3 * DAY_US
"""For how long after a delivery the same event delivered again is dropped."""


@dataclass
class Accepted:
    """Events in the order of delivery, each with its `position`; rejected: (position, reason) of the others."""

    events: list[Event] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    num_backwards: int = 0


def accept(log: EventLog, delivered: Iterable[Mapping[str, Any]], now_us: int) -> Accepted:
    """Refuse what cannot be an event, number the rest by delivery, and make arrival rise.

    now_us: when they were taken; what says it arrives later is absurd.
    """
    found = Accepted()
    arrival_us = None
    for position, event in enumerate(delivered):
        reason = reason_against(log, event, now_us)
        if reason:
            found.rejected.append((position, reason))
            continue
        found.num_backwards += arrival_us is not None and event[ARRIVAL_TS] < arrival_us
        arrival_us = event[ARRIVAL_TS] if arrival_us is None else max(arrival_us, event[ARRIVAL_TS])
        found.events.append({**event, ARRIVAL_TS: arrival_us, "position": position})
    return found


def reason_against(log: EventLog, event: Mapping[str, Any], now_us: int) -> str:
    """Why it is no event; empty if it is one."""
    for name in (EVENT_ID, USER):
        if event[name] is None:
            return f"{name} is null"
    if event[EVENT_TYPE] not in log.types:
        return "event_type is unknown"
    for name in (EVENT_TS, ARRIVAL_TS):
        if event[name] is None:
            return f"{name} is null"
    if not EARLIEST_US <= event[ARRIVAL_TS] <= now_us:
        return "arrival_ts is absurd"
    if not EARLIEST_US <= event[EVENT_TS] <= event[ARRIVAL_TS] + FUTURE_US:
        return "event_ts is absurd"
    return ""


@dataclass
class Timelines:
    """of_user: events of each user, oldest arrival first, with the enrichments' columns and `rank_<definition>`."""

    of_user: dict[int, list[Event]] = field(default_factory=dict)
    num_duplicates: int = 0
    num_conflicts: int = 0


def timelines(
    log: EventLog,
    definitions: Sequence[SequenceDefinition],
    events: Iterable[Event],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    horizon_us: int = HORIZON_US,
) -> Timelines:
    """events: as of `accept`.  tables: name -> rows, for enrichments."""
    found = Timelines()
    delivered: dict[tuple[int, int], Event] = {}
    conditions = [{one.name: one.condition.to_row() for one in definition.events} for definition in definitions]
    for event in events:
        name = (event[USER], event[EVENT_ID])
        before, delivered[name] = delivered.get(name), event
        if before is not None and event[ARRIVAL_TS] - before[ARRIVAL_TS] <= horizon_us:
            found.num_duplicates += 1
            found.num_conflicts += content_of(log, event) != content_of(log, before)
            continue
        is_member = [event[EVENT_TYPE] in of_type and of_type[event[EVENT_TYPE]](event) for of_type in conditions]
        if not any(is_member):
            continue
        timeline = found.of_user.setdefault(event[USER], [])
        enriched = dict(event)
        for enrichment in enrichments_of(definitions):
            row = row_as_of(tables[enrichment.table], enrichment.on, enrichment.as_of, event[enrichment.on], event)
            enriched |= {column: row[column] if row is not None else None for column in enrichment.columns}
        for computed in computed_of(definitions):
            one = pl.DataFrame({name: [event[name]] for name in computed.on}, _schema(log, computed.on))
            enriched |= load_executor(computed)(one).to_dicts()[0]
        for definition, is_one in zip(definitions, is_member):
            last = timeline[-1][definition.rank_column] if timeline else 0
            enriched[definition.rank_column] = last + is_one
        timeline.append(enriched)
    return found


def _schema(log: EventLog, names: Sequence[str]) -> dict[str, Any]:
    return {name: POLARS_TYPES[log.dtypes[name]] for name in names}


def content_of(log: EventLog, event: Event) -> tuple[Any, ...]:
    """What of an event must be equal in every delivery: all but when it arrived; NaN and null are one."""
    values = [event[name] for name in log.dtypes if name != ARRIVAL_TS]
    return tuple(None if is_missing(value) else value for value in values)


def row_as_of(
    rows: Sequence[Mapping[str, Any]], on: str, as_of: str | None, key: Any, event: Event
) -> Mapping[str, Any] | None:
    """The row of the key that holds at the event's arrival; None if there is none."""
    best = None
    for row in rows:
        if key is None or row[on] != key:
            continue
        if as_of is None:
            return row
        if row[as_of] <= event[ARRIVAL_TS] and (best is None or row[as_of] > best[as_of]):
            best = row
    return best


def history_end(timeline: Sequence[Event], at_us: int) -> int:
    """How many events had arrived before this time."""
    return sum(event[ARRIVAL_TS] < at_us for event in timeline)


def sequence_at(
    definition: SequenceDefinition, timeline: Sequence[Event], end: int, at_us: int | None = None
) -> list[Event]:
    """The sequence that a request at this time sees, whose history_end is `end`; oldest event first."""
    members = []
    last = 0
    for event in timeline[:end]:
        if event[definition.rank_column] > last:
            members.append(event)
        last = event[definition.rank_column]
    if definition.window_us is not None and at_us is not None:
        members = [event for event in members if event[ARRIVAL_TS] >= at_us - definition.window_us]
    return [{name: event[name] for name in definition.columns} for event in members[-definition.last_n :]]
