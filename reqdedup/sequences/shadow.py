"""Two ways to make the same sequences, compared before one replaces the other: field by field, then as a whole.

    events      matched by (user_id, event_id); of those, every column, with a tolerance of its own
    sequences   exact; one begins with the other (prefix); as long; overlap: shared events of all events of both

A hundred per cent is not expected of a migration: limits say what is good enough, the verdict is whether all hold, and
the first examples say where to look. Examples name users, so that who compares is told them and no table keeps them:
figures may outlive the users. The new side is a sequence of the timeline. The old one is another version of it,
or any table: of events (user_id, event_id, columns; in the order of timeline_index, arrival_ts or event_ts), or of
users (user_id, and lists of one length, oldest event first). Null and NaN are one value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.types import BooleanType, DoubleType, LongType, NestedField, StringType, TimestamptzType

from reqdedup.arrays.ranges import ranges
from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_ID, EVENT_TS, EVENT_TYPE, USER, SequenceDefinition
from reqdedup.sequences.tables import INDEX
from reqdedup.sequences.timeline import Timeline, open_timeline
from reqdedup.sequences.windows import cut_windows, window_columns
from reqdedup.storage.iceberg.layout import buckets_of

SHADOW_TABLE = "sequence_shadow"
NUM_EXAMPLES = 5
_AGAIN, _EXAMPLES = "_again", "examples"
_SCHEMA = Schema(
    NestedField(1, "compared_at", TimestamptzType(), required=True, doc="when, UTC; the same for a comparison's rows"),
    NestedField(2, "sequence", StringType(), required=True, doc="name of the sequence"),
    NestedField(3, "old", StringType(), required=True, doc="what it was compared with: a table, or a version"),
    NestedField(4, "figure", StringType(), required=True, doc="only_old, only_new, differs, exact, prefix, ..."),
    NestedField(5, "of", StringType(), required=True, doc="column or event type, empty if of the whole"),
    NestedField(6, "compared", LongType(), required=True, doc="events or users that the share is of"),
    NestedField(7, "share", DoubleType(), required=True, doc="of those, from 0 to 1"),
    NestedField(8, "limit", DoubleType(), required=False, doc="that the share must keep to, null if it is only told"),
    NestedField(9, "ok", BooleanType(), required=True, doc="whether it does"),
)


@dataclass(frozen=True, kw_only=True)
class ShadowLimits:
    """Shares from 0 to 1. unmatched: most events of one side that the other lacks.  differing: most matched events with
    another value in a column.  exact: least users with the same events in the same order.  overlap: least mean of the
    shared events of all events of both sides."""

    unmatched: float = 0.001
    differing: float = 0.001
    exact: float = 0.99
    overlap: float = 0.999


@dataclass(frozen=True, kw_only=True)
class ShadowRow:
    """One figure; fields are the columns of `sequence_shadow`, but for the examples: the first that are not alike."""

    figure: str
    of: str = ""
    compared: int
    share: float
    limit: float | None = None
    ok: bool = True
    examples: str = ""


@dataclass(frozen=True)
class ShadowReport:
    """What a comparison found."""

    sequence: str
    old: str
    rows: tuple[ShadowRow, ...]

    @property
    def passed(self) -> bool:
        """The verdict: every figure keeps to its limit."""
        return all(row.ok for row in self.rows)

    def plain(self) -> dict[str, Any]:
        return {
            "sequence": self.sequence,
            "old": self.old,
            "passed": self.passed,
            "rows": [asdict(r) for r in self.rows],
        }


@dataclass
class _Sums:
    """What is added up over the buckets. counts: name -> (out of how many, how many).  examples: name -> the first."""

    counts: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, figure: str, of: str, compared: int, found: float, examples: Sequence[str] = ()) -> None:
        total = self.counts.setdefault((figure, of), [0, 0.0])
        total[0] += compared
        total[1] += found
        shown = self.examples.setdefault((figure, of), [])
        shown += examples[: NUM_EXAMPLES - len(shown)]


def shadow(
    catalog: Catalog,
    namespace: str,
    sequence: str,
    old: str | int,
    *,
    columns: Sequence[str] | None = None,
    tolerance: Mapping[str, float] | None = None,
    limits: ShadowLimits | None = None,
    at: datetime | None = None,
) -> ShadowReport:
    """Compare the sequence of every user, and append the figures to `sequence_shadow`.

    old: a table `namespace.name`, or a version of the timeline.  columns: to compare, by default those of the sequence
    that the old side has too.  tolerance: column -> how far two numbers may lie apart and be alike.
    at: as of which time, with its zone; None: after the latest arrival.
    Raises ValueError if there is no such sequence, version, table or column.
    """
    timeline = open_timeline(catalog, namespace)
    definition = timeline.definition(sequence)
    at_us = round(at.timestamp() * 1e6) if at is not None else timeline.state.arrival_us + 1
    if isinstance(old, int):
        before = open_timeline(catalog, namespace, old)
        its = before.definition(sequence)
        has: Sequence[str] = its.columns
        olds: Iterator[pl.DataFrame] = (_of_timeline(before, its, b, has, at_us) for b in range(before.num_buckets))
    else:
        whole = _of_table(catalog, old, timeline)
        has = whole.columns
        olds = _by_bucket(whole, timeline.num_buckets)
    wanted = list(columns if columns is not None else [name for name in definition.columns if name in has])
    missing = [name for name in wanted if name not in has or name not in definition.columns]
    if missing or not wanted:
        raise ValueError(
            f"shadow: columns of the sequence ({', '.join(definition.columns)}) that {old} has required, found "
            f"{', '.join(missing) or 'none'}"
        )
    sums = _Sums()
    for bucket, one in enumerate(olds):
        new = _of_timeline(timeline, definition, bucket, wanted, at_us)
        compare_events(one, new, wanted, tolerance or {}, sums, timeline.log.types)
        compare_sequences(one, new, sums)
    report = ShadowReport(sequence, str(old), _judged(sums, limits or ShadowLimits()))
    _write(catalog, namespace, report)
    return report


def compare_events(
    old: pl.DataFrame,
    new: pl.DataFrame,
    columns: Sequence[str],
    tolerance: Mapping[str, float],
    sums: _Sums,
    types: Sequence[str],
) -> None:
    """Add the figures of events of two sides, rows of (user_id, event_id, columns) in the order of each sequence."""
    keys = [USER, EVENT_ID, _AGAIN]
    old, new = (side.with_columns(pl.int_range(pl.len()).over(USER, EVENT_ID).alias(_AGAIN)) for side in (old, new))
    for figure, side, other in (("only_old", old, new), ("only_new", new, old)):
        lone = side.join(other, on=keys, how="anti", maintain_order="left")
        sums.add(figure, "", side.height, lone.height, _named(lone))
        if EVENT_TYPE in columns:
            for code, name in enumerate(types):
                of_type = lone.filter(pl.col(EVENT_TYPE) == code)
                if of_type.height:
                    sums.add(
                        figure, name, side.filter(pl.col(EVENT_TYPE) == code).height, of_type.height, _named(of_type)
                    )
    both = old.join(new, on=keys, how="inner", suffix="_new", maintain_order="left")
    for name in columns:
        differs = both.filter(_differs(both, name, tolerance.get(name, 0.0)))
        shown = [
            f"user {user}, event {event}: {before} -> {after}"
            for user, event, before, after in differs.head(NUM_EXAMPLES)
            .select(USER, EVENT_ID, name, f"{name}_new")
            .rows()
        ]
        sums.add("differs", name, both.height, differs.height, shown)


def compare_sequences(old: pl.DataFrame, new: pl.DataFrame, sums: _Sums) -> None:
    """Add the figures of whole sequences, of the users of either side."""
    lists = [side.group_by(USER).agg(pl.col(EVENT_ID)) for side in (old, new)]
    users = lists[0].join(lists[1], on=USER, how="full", suffix="_new", coalesce=True).sort(USER)
    found = dict.fromkeys(("exact", "prefix", "length", "overlap"), 0.0)
    examples: list[str] = []
    for user, before, after in users.select(USER, EVENT_ID, f"{EVENT_ID}_new").iter_rows():
        before, after = before or [], after or []
        shorter = min(len(before), len(after))
        found["exact"] += before == after
        found["prefix"] += before[:shorter] == after[:shorter]
        found["length"] += len(before) == len(after)
        shared, every = len(set(before) & set(after)), len(set(before) | set(after))
        found["overlap"] += shared / every
        if before != after and len(examples) < NUM_EXAMPLES:
            place = next((i for i in range(shorter) if before[i] != after[i]), shorter)
            same = ", the same events" if shared == every and len(before) == len(after) else ""
            examples.append(f"user {user}: {len(before)} -> {len(after)} events, other from event {place} on{same}")
    for name, value in found.items():
        sums.add(name, "", users.height, value, examples if name == "exact" else ())


def _differs(both: pl.DataFrame, name: str, tolerance: float) -> pl.Expr:
    before, after = pl.col(name), pl.col(f"{name}_new")
    if both.schema[name].is_float() or both.schema[f"{name}_new"].is_float():
        before, after = (one.cast(pl.Float64).fill_nan(None) for one in (before, after))
    elif both.schema[name].is_integer() and both.schema[f"{name}_new"].is_integer():
        before, after = before.cast(pl.Int64), after.cast(pl.Int64)
    is_alike = before.eq_missing(after)
    if tolerance and both.schema[name].is_numeric():
        is_alike = is_alike | ((before - after).abs() <= tolerance).fill_null(False)
    return ~is_alike


def _named(events: pl.DataFrame) -> list[str]:
    return [f"user {user}, event {event}" for user, event in events.head(NUM_EXAMPLES).select(USER, EVENT_ID).rows()]


def _judged(sums: _Sums, limits: ShadowLimits) -> tuple[ShadowRow, ...]:
    most = {"only_old": limits.unmatched, "only_new": limits.unmatched, "differs": limits.differing}
    least = {"exact": limits.exact, "overlap": limits.overlap}
    rows = []
    for (figure, of), (compared, found) in sums.counts.items():
        share = found / compared if compared else float(figure in ("exact", "prefix", "length", "overlap"))
        is_whole = figure == "differs" or not of  # of one event type: says where, and is not judged
        limit = (most.get(figure) if figure in most else least.get(figure)) if is_whole else None
        ok = limit is None or (share <= limit if figure in most else share >= limit)
        examples = "; ".join(sums.examples[figure, of])
        rows.append(
            ShadowRow(
                figure=figure, of=of, compared=int(compared), share=share, limit=limit, ok=ok, examples=examples
            )
        )  # fmt: skip
    return tuple(rows)


def _of_timeline(
    timeline: Timeline, definition: SequenceDefinition, bucket: int, columns: Sequence[str], at_us: int
) -> pl.DataFrame:
    """The sequence's events of every user of a bucket, as `fetch` gives them."""
    wanted = replace(definition, columns=tuple(dict.fromkeys([USER, EVENT_ID, *columns])))
    events = timeline.read(bucket, window_columns(timeline, wanted))
    user_R = np.unique(events.column(USER).to_numpy())
    found = cut_windows(events, wanted, user_R, np.full(len(user_R), at_us), kept_from_us=timeline.state.kept_from_us)
    frame = pl.from_arrow(found.events.take(pa.array(ranges(found.start_R, found.length_R))))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _of_table(catalog: Catalog, name: str, timeline: Timeline) -> pl.DataFrame:
    """Any table's sequences as events, in order."""
    table = catalog.load_table(name)
    frame = pl.from_arrow(table.scan().to_arrow())
    assert isinstance(frame, pl.DataFrame)
    lacking = [one for one in (USER, EVENT_ID) if one not in frame.columns]
    if lacking:
        raise ValueError(f"{name}: columns {USER} and {EVENT_ID} required, found no {', '.join(lacking)}")
    if frame.schema[EVENT_ID].base_type() == pl.List:
        lists = [one for one, kind in frame.schema.items() if kind.base_type() == pl.List]
        frame = frame.select(USER, *lists).filter(pl.col(EVENT_ID).list.len() > 0).explode(lists)
    else:
        order = next((one for one in (INDEX, ARRIVAL_TS, EVENT_TS) if one in frame.columns), None)
        if order is None:
            raise ValueError(f"{name}: {INDEX}, {ARRIVAL_TS} or {EVENT_TS} required, by which events are in order")
        frame = frame.sort(USER, order, maintain_order=True)
    if EVENT_TYPE in frame.columns and frame.schema[EVENT_TYPE] == pl.String:
        codes = {kind: code for code, kind in enumerate(timeline.log.types)}
        frame = frame.with_columns(pl.col(EVENT_TYPE).replace_strict(codes, default=None, return_dtype=pl.Int32))
    return frame.with_columns(pl.col(USER, EVENT_ID).cast(pl.Int64))


def _by_bucket(frame: pl.DataFrame, num_buckets: int) -> Iterator[pl.DataFrame]:
    of_row = pl.Series(buckets_of(frame[USER].to_numpy(), num_buckets))
    for bucket in range(num_buckets):
        yield frame.filter(of_row == bucket)


def _write(catalog: Catalog, namespace: str, report: ShadowReport) -> None:
    """Append the figures. A table of an earlier version kept examples: it goes on without them."""
    now = datetime.now(UTC)
    found = [{"compared_at": now, "sequence": report.sequence, "old": report.old, **asdict(row)} for row in report.rows]
    rows = pa.Table.from_pylist(found, schema_to_pyarrow(_SCHEMA, include_field_ids=False))
    table = catalog.create_table_if_not_exists(f"{namespace}.{SHADOW_TABLE}", _SCHEMA)
    if _EXAMPLES not in table.schema().column_names:
        table.append(rows)
        return
    before = table.scan().to_arrow().drop_columns([_EXAMPLES])
    with table.transaction() as transaction:
        with transaction.update_schema() as update:
            update.delete_column(_EXAMPLES)
        transaction.overwrite(pa.concat_tables([before.cast(rows.schema), rows]))
