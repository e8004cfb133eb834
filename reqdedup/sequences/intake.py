"""Events as they are delivered: refused or numbered, and appended to `raw_events`.

Nothing is dropped or reordered here but what is no event; that goes to `rejected_events` with the reason, its row in
the source and its position. Numbers rise by one per delivered event, the rejected ones included, and arrival never
falls: `naive.accept` is the definition.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table

from reqdedup.logs.ids import hash_strings
from reqdedup.sequences.columns import POLARS_TYPES
from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_ID, EVENT_TS, EVENT_TYPE, ITEM, USER, EventLog
from reqdedup.sequences.naive import DAY_US, EARLIEST_US, FUTURE_US
from reqdedup.sequences.sources import EventSource
from reqdedup.sequences.tables import (
    POSITION,
    RAW_ENCODINGS,
    RAW_PROPERTY,
    RAW_TABLE,
    REJECTED_BY,
    REJECTED_SCHEMA,
    REJECTED_TABLE,
    Delivered,
    add_optional_columns,
    arrow_schema,
    delivered_of,
    raw_table,
)
from reqdedup.storage.iceberg.errors import ConflictError, is_conflict
from reqdedup.storage.iceberg.row_files import RowFiles
from reqdedup.storage.maintenance.row_deletion import delete_rows

FILE_ROWS = 1_048_576
"""Delivered events that are held in memory, and the most of a file."""
RAW_CHARACTERS = 500
SOURCES = "reqdedup.event-sources"
"""Snapshot property: names of the sources whose events it brought."""
KNOWN_SOURCES, MAX_KNOWN_SOURCES = "reqdedup.known-sources", 10_000
"""Table property: digests of the sources that were appended last, which the expiry of snapshots leaves alone."""

PROGRESS = "reqdedup.event-progress"
"""Table property: of each stream that goes on, the number behind the last message that was delivered, by partition."""

_UNREADABLE = "{} cannot be read"


@dataclass(kw_only=True)
class IntakeReport:
    """What came of delivered events. num_backwards: said to arrive before one that was delivered earlier; they count as
    arriving with it.  is_known: the source was appended before, and nothing was done.  reasons: why how many are none.
    """

    num_events: int = 0
    num_rejected: int = 0
    num_backwards: int = 0
    is_known: bool = False
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Of a stream that goes on, by partition: the number of the first message that a source has, and the one behind its
    last, which may be known only once all batches were taken."""

    stream: str
    start: Mapping[str, int]
    end: dict[str, int]


@dataclass
class Numbered:
    """Events with their positions, and those that are none (columns of `rejected_events` but the source)."""

    events: pl.DataFrame
    rejected: pl.DataFrame
    num_backwards: int


def append_events(
    catalog: Catalog,
    namespace: str,
    log: EventLog,
    batches: Iterable[pa.RecordBatch | pa.Table],
    *,
    source: str,
    now_us: int | None = None,
    progress: Progress | None = None,
) -> IntakeReport:
    """Append delivered events to `raw_events`, in one commit.

    batches: columns of the log, in any order; one that is missing is null, others are left out. Ids are whole numbers,
    or text, which is hashed. Times are timestamps, ISO text (UTC if it has no zone), or microseconds since 1970.
    Without a column of arrival, they arrive now.
    source: name of the file or stream; one that is among the 10,000 that were appended last is not appended again.
    progress: of a stream; the commit notes its end, for `delivered_until`.
    Raises ConflictError if another process appended meanwhile; then nothing was changed.
    """
    table = raw_table(catalog, namespace, log)
    _delete_rejected(catalog, namespace, delivered_of(table), own=False)
    streams = _streams(table)
    if progress is not None and streams.get(progress.stream, {}) != progress.start:
        raise ConflictError(f"{namespace}.{RAW_TABLE}: another process delivered {progress.stream}; run it again")
    report = IntakeReport()
    known, digest = _known_sources(table), _digest(source)
    if digest in known:
        report.is_known = True
        return report
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    before = delivered = delivered_of(table)
    rejected: list[pl.DataFrame] = []
    source_row = 0
    with RowFiles(table, RAW_ENCODINGS) as files:
        for frame in _gathered(batches):
            found = number_events(log, frame, delivered, now_us)
            rejected.append(found.rejected.with_columns(source_row=pl.col("source_row") + source_row))
            source_row += frame.height
            delivered = Delivered(
                next_position=delivered.next_position + frame.height,
                arrival_us=max(delivered.arrival_us, _last_us(found.events)),
                first_position=before.next_position,
                write_id=files.write_id,
            )
            report.num_events += found.events.height
            report.num_backwards += found.num_backwards
            days = found.events.with_columns(day=pl.col(ARRIVAL_TS).dt.epoch("us") // DAY_US)
            for (day,), rows in days.group_by(["day"], maintain_order=True):
                files.write([day], rows.drop("day").to_arrow().select(arrow_schema(table).names))
        report.num_rejected = sum(frame.height for frame in rejected)
        report.reasons = dict(Counter(reason for frame in rejected for reason in frame["reason"]).most_common())
        if not source_row:
            return report
        _write_rejected(catalog, namespace, pl.concat(rejected), source, files.write_id)
        try:
            noted: dict[str, Any] = {KNOWN_SOURCES: [*known, digest][-MAX_KNOWN_SOURCES:]}
            if progress is not None:
                noted[PROGRESS] = {**streams, progress.stream: {**progress.start, **progress.end}}
            files.commit(properties={RAW_PROPERTY: vars(delivered), SOURCES: [source]}, of_table=noted)
        except ConflictError:
            if report.num_rejected:
                _delete_rejected(catalog, namespace, delivered, own=True)
            raise
    with contextlib.suppress(ConflictError):  # the events have landed: what stays goes before the next append
        _delete_rejected(catalog, namespace, delivered, own=False)
    return report


def deliver(catalog: Catalog, namespace: str, log: EventLog, source: EventSource) -> IntakeReport:
    """Append a source's events; see `append_events`."""
    progress = getattr(source, "progress", None)
    return append_events(catalog, namespace, log, source.batches(log), source=source.name, progress=progress)


def number_events(log: EventLog, frame: pl.DataFrame, delivered: Delivered, now_us: int) -> Numbered:
    """The delivered rows of a frame as events, in their order, numbered from `delivered` on.

    What `naive.accept` does, for columns.
    """
    said = frame.rename({name: f"_said_{name}" for name in frame.columns})
    has = set(frame.columns)
    read = said.select(
        *(_read(name, dtype, said).alias(name) for name, dtype in log.dtypes.items()),
        *(pl.col(f"_said_{name}") for name in log.dtypes if name in has),
    )
    if ARRIVAL_TS not in has:
        read = read.with_columns(pl.lit(now_us).cast(POLARS_TYPES["timestamp"]).alias(ARRIVAL_TS))
    event_us, arrival_us = (pl.col(name).dt.epoch("us") for name in (EVENT_TS, ARRIVAL_TS))
    is_lost = {
        name: pl.col(name).is_null() & pl.col(f"_said_{name}").is_not_null() for name in log.dtypes if name in has
    }
    reasons = [
        *(pl.when(is_lost[n]).then(pl.lit(_UNREADABLE.format(n))) for n in (EVENT_ID, USER) if n in has),
        *(pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is null")) for name in (EVENT_ID, USER)),
        pl.when(~pl.col(EVENT_TYPE).is_in(list(log.types)).fill_null(False)).then(pl.lit(f"{EVENT_TYPE} is unknown")),
        *(pl.when(is_lost[n]).then(pl.lit(_UNREADABLE.format(n))) for n in (EVENT_TS, ARRIVAL_TS) if n in has),
        *(pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is null")) for name in (EVENT_TS, ARRIVAL_TS)),
        pl.when(~arrival_us.is_between(EARLIEST_US, now_us)).then(pl.lit(f"{ARRIVAL_TS} is absurd")),
        pl.when(~event_us.is_between(EARLIEST_US, arrival_us + FUTURE_US)).then(pl.lit(f"{EVENT_TS} is absurd")),
        *(pl.when(is_lost[n]).then(pl.lit(_UNREADABLE.format(n))) for n in (ITEM, *log.columns) if n in has),
    ]
    read = read.select(
        *log.dtypes,
        pl.int_range(pl.len(), dtype=pl.Int64).alias("source_row"),
        pl.coalesce(*reasons).alias("reason"),
    ).with_columns((pl.col("source_row") + delivered.next_position).alias(POSITION))
    events = read.filter(pl.col("reason").is_null()).drop("reason", "source_row")
    latest = pl.col(ARRIVAL_TS).cum_max().shift(1, fill_value=None).dt.epoch("us").fill_null(0)
    events = events.with_columns(pl.max_horizontal(latest, pl.lit(delivered.arrival_us)).alias("_latest"))
    is_backwards = pl.col(ARRIVAL_TS).dt.epoch("us") < pl.col("_latest")
    num_backwards = int(events.select(is_backwards.sum()).item())
    events = events.with_columns(
        pl.max_horizontal(pl.col(ARRIVAL_TS).dt.epoch("us"), pl.col("_latest"))
        .cast(POLARS_TYPES["timestamp"])
        .alias(ARRIVAL_TS)
    ).drop("_latest")
    bad = read.filter(pl.col("reason").is_not_null())
    raw = [_json(row) for row in frame[bad["source_row"]].iter_rows(named=True)] if bad.height else []
    rejected = bad.select("reason", "source_row", POSITION, USER).with_columns(raw=pl.Series(raw, dtype=pl.String))
    return Numbered(events, rejected, num_backwards)


def _read(name: str, dtype: str, said: pl.DataFrame) -> pl.Expr:
    """The column as its dtype, null where it cannot be read."""
    wanted = POLARS_TYPES[dtype]
    if f"_said_{name}" not in said.columns:
        return pl.lit(None, wanted)
    found = said.schema[f"_said_{name}"]
    column = pl.col(f"_said_{name}")
    if name in (EVENT_ID, USER, ITEM) and found == pl.String:
        is_number = column.str.contains(r"^(0|-?[1-9][0-9]*)$")
        hashed = column.map_batches(hash_strings, return_dtype=pl.Int64)
        return pl.when(is_number).then(column.cast(pl.Int64, strict=False)).when(column != "").then(hashed)
    if dtype == "timestamp" and found == pl.String:
        # apart, since Polars reads a column in the form of its first text
        has_zone = column.str.contains(r"[Tt ].*([Zz]|[+-]\d\d(:?\d\d)?)$")
        texts = (pl.when(is_one).then(column) for is_one in (has_zone, ~has_zone))
        return pl.coalesce(one.str.to_datetime(time_unit="us", time_zone="UTC", strict=False) for one in texts)
    if dtype == "timestamp" and isinstance(found, pl.Datetime):
        if found.time_zone is None:
            column = column.dt.replace_time_zone("UTC")
        return column.dt.convert_time_zone("UTC").cast(wanted)
    if found.is_float() and wanted in (pl.Int32, pl.Int64, pl.Datetime("us", "UTC")):
        is_whole = column.is_finite() & (column == column.floor()) & (column.abs() < 2**53)
        column = pl.when(is_whole).then(column).cast(pl.Int64, strict=False)
    if dtype == "timestamp":
        return column.cast(pl.Int64, strict=False).cast(wanted)
    if dtype == "bool" and found == pl.String:
        return column.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    return column.cast(wanted, strict=False)


def _gathered(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[pl.DataFrame]:
    """The rows in frames of FILE_ROWS at most, small batches together."""
    waiting: list[pl.DataFrame] = []
    num_rows = 0
    for batch in batches:
        whole = pl.from_arrow(batch)
        assert isinstance(whole, pl.DataFrame)
        for frame in whole.iter_slices(FILE_ROWS):
            if waiting and (num_rows + frame.height > FILE_ROWS or frame.schema != waiting[0].schema):
                yield pl.concat(waiting)
                waiting, num_rows = [], 0
            waiting.append(frame)
            num_rows += frame.height
    if waiting:
        yield pl.concat(waiting)


def _write_rejected(catalog: Catalog, namespace: str, rejected: pl.DataFrame, source: str, write_id: str) -> None:
    """Put them into their table, before the commit of the events whose neighbours they are."""
    if not rejected.height:
        return
    identifier = f"{namespace}.{REJECTED_TABLE}"
    table = catalog.create_table_if_not_exists(identifier, REJECTED_SCHEMA)
    wanted = schema_to_pyarrow(REJECTED_SCHEMA, include_field_ids=False)
    said = {"source": pl.lit(source), REJECTED_BY: pl.lit(write_id)}
    rows = rejected.with_columns(**said).select(wanted.names).to_arrow().cast(wanted)
    try:
        with table.transaction() as transaction:
            add_optional_columns(transaction, REJECTED_SCHEMA)
            transaction.append(rows)
    except Exception as error:
        if is_conflict(error):
            raise ConflictError(f"{identifier}: another process delivered events; run it again") from error
        raise


def _delete_rejected(catalog: Catalog, namespace: str, append: Delivered, *, own: bool) -> None:
    """Delete, among the positions of an append, the rejected events that it brought itself, if it did not land, or what
    appends left there that did not, since they were killed.

    What lies beyond its positions stays: its append may still land, and the one that takes them deletes it if not.
    """
    first, end = append.first_position, append.next_position
    if not append.write_id or not catalog.table_exists(identifier := f"{namespace}.{REJECTED_TABLE}"):
        return

    def is_gone(rows: pa.Table) -> np.ndarray:
        position, is_own = rows.column(POSITION).to_numpy(), np.zeros(len(rows), bool)
        if REJECTED_BY in rows.column_names:  # a table of an earlier version has none
            is_own = pc.equal(rows.column(REJECTED_BY), append.write_id).fill_null(False).to_numpy()
        return (position >= first) & (position < end) & (is_own == own)

    delete_rows(catalog.load_table(identifier), is_gone, row_filter=f"{POSITION} >= {first} and {POSITION} < {end}")


def delivered_until(catalog: Catalog, namespace: str, stream: str) -> dict[str, int]:
    """By partition, the number behind the last message of a stream that was delivered; empty before the first."""
    identifier = f"{namespace}.{RAW_TABLE}"
    if not catalog.table_exists(identifier):
        return {}
    return _streams(catalog.load_table(identifier)).get(stream, {})


def _streams(table: Table) -> dict[str, dict[str, int]]:
    return json.loads(table.properties.get(PROGRESS) or "{}")


def _known_sources(table: Table) -> list[str]:
    """Digests of the sources that were appended, oldest first; of older tables those that their snapshots say."""
    summaries = [one.summary for one in table.metadata.snapshots if one.summary is not None]
    said = [json.loads(summary.get(SOURCES) or "[]") for summary in summaries]
    known = json.loads(table.properties.get(KNOWN_SOURCES) or "[]")
    return list(dict.fromkeys([*known, *(_digest(name) for names in said for name in names)]))


def _digest(source: str) -> str:
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def _last_us(events: pl.DataFrame) -> int:
    return int(events[ARRIVAL_TS].dt.epoch("us")[-1]) if events.height else 0


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, default=str, ensure_ascii=False)[:RAW_CHARACTERS]
