"""From delivered events to rows of the timeline, the same function for a day, a micro-batch and a backfill.

    delivered, in order -> once -> wanted by a definition -> enriched as of arrival -> numbered per user

`naive.timelines` is the definition. Nothing here reads or writes a table: who calls gives the delivered events, those
of the redelivery horizon before them, where each user's timeline stands, and the enrichments' tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import polars as pl

from reqdedup.arrays.keys import run_starts
from reqdedup.sequences.definition import (
    ARRIVAL_TS,
    EVENT_ID,
    EVENT_TS,
    EVENT_TYPE,
    USER,
    Enrichment,
    EventLog,
    SequenceDefinition,
    computed_of,
    enrichments_of,
)
from reqdedup.sequences.executors import load_executor, with_computed
from reqdedup.sequences.lookups import lookup_dtypes
from reqdedup.sequences.naive import HORIZON_US
from reqdedup.sequences.tables import INDEX, POSITION, VERSION, arrow_schema_of, timeline_dtypes

LATE_US = 3_600_000_000
"""An event that arrives later than this after it happened is counted as late."""

_FOUND = "_found"


@dataclass(kw_only=True)
class EventCounts:
    """What became of delivered events. num_conflicts: of the duplicates, those with other content than before.

    num_late: delivered events that happened over an hour before.  num_kept: rows of the timeline.
    unmatched: enrichment -> rows of the timeline without a row of its table.
    """

    num_delivered: int = 0
    num_duplicates: int = 0
    num_conflicts: int = 0
    num_late: int = 0
    num_kept: int = 0
    unmatched: dict[str, int] = field(default_factory=dict)

    def add(self, other: EventCounts) -> None:
        for one in fields(self):
            if one.name != "unmatched":
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        for name, count in other.unmatched.items():
            self.unmatched[name] = self.unmatched.get(name, 0) + count


class TimelineBuilder:
    """Makes rows of one timeline. tables: name -> what the enrichments look up, as `lookups.prepared` makes it.

    schema: Arrow's, of the rows as the timeline stores them.
    """

    def __init__(
        self,
        log: EventLog,
        definitions: Sequence[SequenceDefinition],
        tables: Mapping[str, pl.DataFrame],
        *,
        horizon_us: int = HORIZON_US,
    ) -> None:
        self.log, self.horizon_us = log, horizon_us
        self.definitions = sorted(definitions, key=lambda one: one.name)
        self.enrichments = enrichments_of(definitions)
        self._tables = {one.name: checked_lookup(one, tables[one.table], log) for one in self.enrichments}
        self._computed = [(one, load_executor(one)) for one in computed_of(definitions)]
        dtypes = timeline_dtypes(log, self.definitions, lookup_dtypes(self.enrichments, tables))
        self.schema = arrow_schema_of(dtypes)
        self._log_schema = pl.Schema(arrow_schema_of({**log.dtypes, POSITION: "int64"}))
        self._members = [_member(one, log) for one in self.definitions]

    @property
    def rank_columns(self) -> list[str]:
        return [one.rank_column for one in self.definitions]

    def no_ends(self) -> pl.DataFrame:
        """Where timelines stand before any event."""
        return pl.DataFrame(schema={USER: pl.Int64, "end": pl.Int64, **dict.fromkeys(self.rank_columns, pl.Int32)})

    def of_log(self, delivered: pl.DataFrame) -> pl.DataFrame:
        """Delivered events with the columns of the builder's log: those of a log that went on are left out, those that
        an event from before has not are null."""
        made = [
            pl.col(name) if name in delivered.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in self._log_schema.items()
        ]
        return delivered.select(made)

    def run(
        self,
        delivered: pl.DataFrame,
        earlier: Callable[[pl.Series], pl.DataFrame],
        ends: Callable[[pl.Series], pl.DataFrame],
        *,
        version: int = 1,
    ) -> tuple[pl.DataFrame, EventCounts]:
        """Rows of the timeline, in order of (user_id, timeline_index), and what became of the events.

        delivered: rows of `raw_events` in the order of position.
        earlier: of the events that were delivered before them within the horizon, the rows with these event ids.
        ends: of these users, those who have a timeline, with `end`, its number of events, and the last ranks.
        """
        delivered, counts = self.of_log(delivered), EventCounts(num_delivered=delivered.height)
        late = pl.col(ARRIVAL_TS).dt.epoch("us") - pl.col(EVENT_TS).dt.epoch("us") > LATE_US
        counts.num_late = int(delivered.select(late.sum()).item())
        rows = self._once(delivered, earlier, counts)
        members = rows.select(member.cast(pl.Int32).alias(one.rank_column) for one, member in self._with_members())
        wanted = members.select(pl.any_horizontal(pl.all() > 0)).to_series() if members.height else None
        if wanted is not None:
            rows, members = rows.filter(wanted), members.filter(wanted)
        rows = self._enriched(pl.concat([rows, members], how="horizontal"), counts)
        counts.num_kept = rows.height
        return self._numbered(rows, ends, version), counts

    def _with_members(self) -> list[tuple[SequenceDefinition, pl.Expr]]:
        return list(zip(self.definitions, self._members))

    def _once(
        self, delivered: pl.DataFrame, earlier: Callable[[pl.Series], pl.DataFrame], counts: EventCounts
    ) -> pl.DataFrame:
        """The events that no delivery within the horizon before them brought already."""
        before = self.of_log(earlier(delivered[EVENT_ID]))
        is_again = delivered[EVENT_ID].is_duplicated() | delivered[EVENT_ID].is_in(before[EVENT_ID].implode())
        if not is_again.any():
            return delivered
        content = [
            pl.col(name).fill_nan(None) if dtype.startswith("float") else pl.col(name)
            for name, dtype in self.log.dtypes.items()
            if name != ARRIVAL_TS
        ]
        suspects = pl.concat([before.select(delivered.columns), delivered.filter(is_again)])
        suspects = suspects.sort(USER, EVENT_ID, POSITION).select(POSITION, *content, pl.col(ARRIVAL_TS).dt.epoch("us"))
        same = [pl.col(name).eq_missing(pl.col(name).shift(1)) for name in self.log.dtypes if name != ARRIVAL_TS]
        is_dropped = (
            pl.col(USER).eq_missing(pl.col(USER).shift(1))
            & pl.col(EVENT_ID).eq_missing(pl.col(EVENT_ID).shift(1))
            & (pl.col(ARRIVAL_TS) - pl.col(ARRIVAL_TS).shift(1) <= self.horizon_us).fill_null(False)
        )
        first = int(delivered[POSITION][0])
        dropped = suspects.select(
            POSITION, is_dropped.alias("is_dropped"), pl.all_horizontal(same).alias("is_same")
        ).filter(pl.col("is_dropped") & (pl.col(POSITION) >= first))
        counts.num_duplicates = dropped.height
        counts.num_conflicts = dropped.height - int(dropped["is_same"].sum())
        return delivered.filter(~pl.col(POSITION).is_in(dropped[POSITION].implode()))

    def _enriched(self, rows: pl.DataFrame, counts: EventCounts) -> pl.DataFrame:
        for one in self.enrichments:
            rows, counts.unmatched[one.name] = joined_lookup(rows, one, self._tables[one.name])
        for computed, executor in self._computed:
            rows = with_computed(rows, computed, executor)
        return rows

    def _numbered(self, rows: pl.DataFrame, ends: Callable[[pl.Series], pl.DataFrame], version: int) -> pl.DataFrame:
        rows = rows.sort(USER, maintain_order=True)
        user_T = rows[USER].to_numpy()
        start_U = run_starts([user_T])
        users = rows[USER].gather(start_U)
        stands = pl.DataFrame({USER: users}).join(ends(users), on=USER, how="left", maintain_order="left")
        length_U = np.diff(np.append(start_U, len(user_T)))
        index_T = np.arange(len(user_T)) - np.repeat(start_U - stands["end"].fill_null(0).to_numpy(), length_U)
        made: list[pl.Series] = [pl.Series(INDEX, index_T, pl.Int64)]
        for name in self.rank_columns:
            total_T = np.cumsum(rows[name].to_numpy(), dtype=np.int64)
            before_U = np.where(start_U > 0, total_T[start_U - 1], 0) if len(start_U) else start_U
            offset_U = stands[name].fill_null(0).to_numpy() - before_U
            made.append(pl.Series(name, total_T + np.repeat(offset_U, length_U), pl.Int32))
        codes = {name: code for code, name in enumerate(self.log.types)}
        return rows.with_columns(
            *made,
            pl.lit(version, pl.Int32).alias(VERSION),
            pl.col(EVENT_TYPE).replace_strict(codes, return_dtype=pl.Int32),
        ).drop(POSITION)


def _member(definition: SequenceDefinition, log: EventLog) -> pl.Expr:
    return pl.any_horizontal(
        (pl.col(EVENT_TYPE) == one.name) & one.condition.to_polars(log.dtypes) for one in definition.events
    )


def joined_lookup(rows: pl.DataFrame, one: Enrichment, table: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Events, in the order of arrival, with the columns of an enrichment, and how many of them have no row of it.

    table: as of `checked_lookup`.
    """
    if one.as_of is None:
        rows = rows.join(table, on=one.on, how="left", maintain_order="left")
    else:
        rows = rows.join_asof(table, left_on=ARRIVAL_TS, right_on=one.as_of, by=one.on, check_sortedness=False).drop(
            one.as_of
        )
    return rows.drop(_FOUND), int(rows[_FOUND].null_count())


def checked_lookup(enrichment: Enrichment, table: pl.DataFrame, log: EventLog) -> pl.DataFrame:
    """The columns of a table that an enrichment looks up, ready to be joined.

    Raises ValueError if a column is not there, or if two rows hold for one key at one time, naming both.
    """
    say = f"enrichment {enrichment.name}: {enrichment.table}"
    names = [enrichment.on, *enrichment.columns, *([enrichment.as_of] if enrichment.as_of else [])]
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(f"{say}: columns {', '.join(names)} required, found no {', '.join(missing)}")
    keys = [enrichment.on, *([enrichment.as_of] if enrichment.as_of else [])]
    table = table.select(names).drop_nulls(keys)
    if enrichment.as_of:
        table = table.with_columns(_time(table, enrichment.as_of, say)).sort(enrichment.as_of)
    if len(keys) == 1 and table[keys[0]].n_unique() == table.height:
        twice = table.clear()
    else:
        twice = table.filter(table.select(keys).is_duplicated())
    if twice.height:
        rows = twice.filter(pl.struct(keys) == twice.select(pl.struct(keys).first()).to_series()[0]).head(2).to_dicts()
        raise ValueError(f"{say}: one row for each {' and '.join(keys)} required, found two: {rows[0]} and {rows[1]}")
    key_type: Any = {"int32": pl.Int32, "int64": pl.Int64, "string": pl.String}[log.dtypes[enrichment.on]]
    if table.schema[enrichment.on] != key_type:
        table = table.with_columns(pl.col(enrichment.on).cast(key_type))
    return table.with_columns(pl.lit(True).alias(_FOUND))


def _time(table: pl.DataFrame, name: str, say: str) -> pl.Expr:
    found = table.schema[name]
    if isinstance(found, pl.Datetime):
        column = pl.col(name) if found.time_zone else pl.col(name).dt.replace_time_zone("UTC")
        return column.dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC"))
    if found == pl.Date or found.is_integer():
        return pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    raise ValueError(f"{say}: a time required as as_of, found {name} of {found}")
