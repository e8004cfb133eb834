"""Parts of the timeline made anew as a new version: one enrichment, or the events that arrived on some days.

    version n      a b c d e      files of a bucket and month each
    version n + 1  a b C d E      only those with a value that changes are written; the others are of both

As a whole backfill they are staged on a branch, and `batch.publish_timeline` brings them to the watermark, checks them
and shows them; requests of the version before still find their events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.sequences.batch import AdvanceReport, stage_branch
from reqdedup.sequences.columns import conform
from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_TYPE, USER, Enrichment, enrichments_of
from reqdedup.sequences.delivered import PART_ROWS, DeliveredRange
from reqdedup.sequences.lookups import load_lookups
from reqdedup.sequences.naive import HORIZON_US
from reqdedup.sequences.tables import INDEX, POSITION, TIMELINE_PROPERTY, VERSION, load_raw
from reqdedup.sequences.timeline import Timeline, open_timeline, row_files, write_rows
from reqdedup.sequences.timeline_builder import TimelineBuilder, checked_lookup, joined_lookup
from reqdedup.storage.iceberg.manifests import data_files


@dataclass(kw_only=True)
class CorrectionReport:
    """What a correction staged. version: of the timeline; the current one if no value changed, and nothing was staged.

    num_events: whose values changed.  num_files, num_bytes: written.  touched_bytes: of the files in whose place they
    are.  num_kept_files: of both versions.
    """

    version: int
    num_events: int = 0
    num_files: int = 0
    num_bytes: int = 0
    touched_bytes: int = 0
    num_kept_files: int = 0


def correct_enrichment(catalog: Catalog, namespace: str, enrichment: str) -> CorrectionReport:
    """Look up one enrichment of every event anew, in its table as it is now, as a new version on a branch.

    Raises ValueError if no definition of the timeline has it; for more see `batch.backfill`.
    """
    timeline = open_timeline(catalog, namespace)
    every = {one.name: one for one in enrichments_of(timeline.definitions)}
    if enrichment not in every:
        raise ValueError(
            f"{namespace}: an enrichment of the timeline ({', '.join(every) or 'it has none'}) required, found "
            f"{enrichment!r}"
        )
    one = every[enrichment]
    lookup = checked_lookup(one, load_lookups(catalog, [one])[one.table], timeline.log)
    state = replace(timeline.state, version=timeline.state.version + 1)
    report = CorrectionReport(version=state.version)
    removed: list[DataFile] = []
    with row_files(timeline.table) as files:
        for file in timeline.files:
            if _lies_before(timeline, file, timeline.state.kept_from_us):
                report.num_kept_files += 1
                continue
            found = _anew(timeline, file, one, lookup)
            changed = found.filter(pl.any_horizontal(~pl.col(n).eq_missing(pl.col(f"old {n}")) for n in one.columns))
            if not changed.height:
                report.num_kept_files += 1
                continue
            report.num_events += changed.height
            whole = timeline.read_file(file, timeline.schema.names)
            made = conform(found.select(one.columns), pa.schema([timeline.schema.field(n) for n in one.columns]))
            for name in one.columns:
                whole = whole.set_column(whole.schema.get_field_index(name), timeline.schema.field(name), made[name])
            files.write(_partition(file), _of_version(whole, state.version))
            removed.append(file)
        if not removed:
            report.version = timeline.state.version
            return report
        branch = stage_branch(timeline.table, state.version, main=timeline.snapshot_id)
        files.commit(removed=removed, properties={TIMELINE_PROPERTY: state.plain()}, branch=branch)
        report.num_files, report.num_bytes = len(files.files), files.num_bytes
    report.touched_bytes = sum(file.file_size_in_bytes for file in removed)
    return report


def backfill_days(
    catalog: Catalog,
    namespace: str,
    since: date,
    until: date | None = None,
    *,
    horizon_us: int = HORIZON_US,
    part_rows: int = PART_ROWS,
) -> AdvanceReport:
    """Make the events anew that arrived from `since` to before `until` (None: to the watermark), as a new version on a
    branch: the same function as `advance`, over these days of `raw_events`. The other events stay as they are.

    By the definitions of the timeline: others would number the events after the days anew, which calls for a whole
    backfill. Raises ValueError as `batch.backfill` does, and for days of which `raw_events` has none any more.
    """
    raw, timeline = load_raw(catalog, namespace), open_timeline(catalog, namespace)
    if until is not None and until <= since:
        raise ValueError(f"backfill: a day after {since} required as the end, found {until}")
    lookups = load_lookups(catalog, enrichments_of(timeline.definitions))
    builder = TimelineBuilder(timeline.log, timeline.definitions, lookups, horizon_us=horizon_us)
    state = replace(timeline.state, version=timeline.state.version + 1)
    since_us, until_us = _midnight_us(since), None if until is None else _midnight_us(until)
    if since_us < timeline.state.kept_from_us:
        kept_from = datetime.fromtimestamp(timeline.state.kept_from_us / 1e6, UTC).date()
        raise ValueError(f"{namespace}: events are kept from {kept_from} on; that day or a later one required as since")
    start, end = _positions(raw, since, until, timeline.state.position)
    events = DeliveredRange(raw, start, end, horizon_us=horizon_us)
    report = AdvanceReport(version=state.version, position=state.position)
    touched = [file for file in timeline.files if _overlaps(timeline, file, since_us, until_us)]
    with row_files(timeline.table) as files:
        for file in touched:
            rows = timeline.read_file(file, timeline.schema.names)
            arrival_T = rows.column(ARRIVAL_TS).cast(pa.int64()).to_numpy()
            is_kept = arrival_T < since_us
            if until_us is not None:
                is_kept |= arrival_T >= until_us
            if is_kept.any():
                files.write(_partition(file), rows.filter(pa.array(is_kept)))
        for part in events.parts(timeline.num_buckets, part_rows):

            def ends(users: pl.Series, buckets: frozenset[int] | None = part.buckets) -> pl.DataFrame:
                return _ends_before(timeline, builder, users, buckets, since_us)

            rows, counts = builder.run(part.delivered, part.earlier, ends, version=state.version)
            report.counts.add(counts)
            write_rows(files, rows, timeline.num_buckets)
        branch = stage_branch(timeline.table, state.version, main=timeline.snapshot_id)
        files.commit(removed=touched, properties={TIMELINE_PROPERTY: state.plain()}, branch=branch)
        report.num_files, report.num_bytes = len(files.files), files.num_bytes
    return report


def _anew(timeline: Timeline, file: DataFile, one: Enrichment, lookup: pl.DataFrame) -> pl.DataFrame:
    """The enrichment's columns of a file's events, looked up now, and beside them as they are, `old <name>`."""
    old = pl.from_arrow(timeline.read_file(file, [ARRIVAL_TS, *dict.fromkeys((one.on, *one.columns))]))
    assert isinstance(old, pl.DataFrame)
    rows = old.rename({name: f"old {name}" for name in one.columns}).with_row_index("_row")
    if one.on == EVENT_TYPE:
        names = dict(enumerate(timeline.log.types))
        rows = rows.with_columns(pl.col(EVENT_TYPE).replace_strict(names, return_dtype=pl.String))
    found, _ = joined_lookup(rows.sort(ARRIVAL_TS), one, lookup)
    return found.sort("_row")


def _ends_before(
    timeline: Timeline, builder: TimelineBuilder, users: pl.Series, buckets: frozenset[int] | None, since_us: int
) -> pl.DataFrame:
    """Where the timelines of these users stood before a time; as `Standing.ends` says it."""
    found = [builder.no_ends()]
    for bucket in range(timeline.num_buckets) if buckets is None else sorted(buckets):
        rows = timeline.read(bucket, [ARRIVAL_TS, *builder.rank_columns])
        rows = rows.filter(pa.array(rows.column(ARRIVAL_TS).cast(pa.int64()).to_numpy() < since_us))
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        frame = frame.filter(pl.col(USER).is_in(users.implode()))
        last = frame.group_by(USER).agg(pl.col(INDEX).max() + 1, *(pl.col(n).max() for n in builder.rank_columns))
        found.append(last.rename({INDEX: "end"}).cast(found[0].schema))
    return pl.concat(found)


def _positions(raw: Table, since: date, until: date | None, watermark: int) -> tuple[int, int]:
    """Positions of what arrived on these days: days follow one another as positions do."""
    current = raw.current_snapshot()
    field = raw.schema().find_field(POSITION).field_id
    starts = [
        (int(file.partition[0]), int.from_bytes(file.lower_bounds[field], "little", signed=True))
        for file in (data_files(raw, current.snapshot_id) if current is not None else [])
    ]
    first, last = (None if day is None else (day - date(1970, 1, 1)).days for day in (since, until))
    start = min((position for day, position in starts if first is not None and day >= first), default=watermark)
    end = min((position for day, position in starts if last is not None and day >= last), default=watermark)
    return min(start, watermark), min(end, watermark)


def _lies_before(timeline: Timeline, file: DataFile, time_us: int) -> bool:
    return not _overlaps(timeline, file, time_us, None)


def _overlaps(timeline: Timeline, file: DataFile, since_us: int, until_us: int | None) -> bool:
    """Whether a file has events that arrived from one time to before another, as far as its bounds tell."""
    field = timeline.table.schema().find_field(ARRIVAL_TS).field_id
    low, high = ((bounds or {}).get(field) for bounds in (file.lower_bounds, file.upper_bounds))
    if low is None or high is None:
        return True
    first_us, last_us = (int.from_bytes(bound, "little", signed=True) for bound in (low, high))
    return last_us >= since_us and (until_us is None or first_us < until_us)


def _of_version(rows: pa.Table, version: int) -> pa.Table:
    place = rows.schema.get_field_index(VERSION)
    return rows.set_column(place, rows.schema.field(place), pa.array(np.full(len(rows), version, np.int32)))


def _partition(file: DataFile) -> list[int]:
    return [int(file.partition[0]), int(file.partition[1])]


def _midnight_us(day: date) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000
