"""From the impression log to labelled rows: the table `impressions`, clicks beside it, and what is mature of them.

    log files -> collect -> impressions, impression_clicks -> mature -> raw_engagements

An impression is mature when its attribution window, and the time that a click may need to arrive, have passed. Then
each item that was shown becomes a row: a label is 1 if a click of that label happened inside the window, else 0. Before
that it is in no table that training reads. A click after the window counts for nothing, and one that is collected after
its impression has matured changes nothing.

Every step may be killed and repeated, and a record may come twice: a commit remembers the log files it is of, and a
request enters raw_engagements once. A run reads the days that can have changed (`matured`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import BooleanExpression
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform
from pyiceberg.types import (
    DoubleType,
    FloatType,
    IntegerType,
    ListType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from reqdedup.schema import (
    HISTORY_END,
    ITEM_ID,
    REQUEST_ID,
    REQUEST_TS,
    TIMELINE_VERSION,
    USER_ID,
    EngagementSchema,
)
from reqdedup.sequences.store import Store, Window
from reqdedup.serving.impressions.labelled import LabelledImpression, rows_of
from reqdedup.serving.impressions.log import Click, Impression, LogRecords, is_history, is_own, read_log, sealed_files
from reqdedup.serving.impressions.matured import day_of, keep_note, note_of, on_days, still_open
from reqdedup.storage import Layout, write
from reqdedup.storage.iceberg.layout import table_layout, table_schema
from reqdedup.storage.iceberg.names import make_namespace
from reqdedup.storage.maintenance.served_rows import CLICKS, IMPRESSIONS

FILES_PROPERTY = "reqdedup.log-files"
"""Of a snapshot: names of the log files whose records it brought."""
FILES_TOGETHER = 16
REQUESTS_TOGETHER = 512

_US = 1_000_000


def _field(number: int, name: str, kind: Any, doc: str) -> NestedField:
    return NestedField(number, name, kind, required=True, doc=doc)


def _list(number: int, kind: Any) -> ListType:
    return ListType(number, kind, element_required=True)


_IMPRESSIONS = Schema(
    _field(1, REQUEST_ID, LongType(), "the request, given by the server"),
    _field(2, REQUEST_TS, TimestamptzType(), "when it was answered, UTC"),
    _field(3, USER_ID, LongType(), "the user"),
    _field(4, "start", LongType(), "first event of the window that was read"),
    _field(5, HISTORY_END, LongType(), "events in the user's timeline before the request"),
    _field(6, TIMELINE_VERSION, IntegerType(), "version of the timeline"),
    _field(7, "history_digest", StringType(), "of the window's events; with the columns if the request brought it"),
    _field(8, "model", StringType(), "fingerprint of the ranking model"),
    _field(9, "definition", StringType(), "version of what else made the answer"),
    _field(10, "rerank", StringType(), "version of the re-ranking"),
    _field(11, ITEM_ID, _list(21, LongType()), "all candidates that were scored"),
    _field(12, "labels", _list(22, StringType()), "the model's labels"),
    _field(13, "logits", _list(23, FloatType()), "of the slate, one label after the other"),
    _field(14, "slate", _list(24, LongType()), "items that were shown, in their order"),
    _field(17, "score", _list(25, DoubleType()), "of the candidates, by which they were ranked"),
    _field(15, "request", StringType(), "request-level columns as used, JSON"),
    _field(16, "items", StringType(), "item-level columns of the candidates as used, JSON"),
)
_CLICKS = Schema(
    _field(1, REQUEST_ID, LongType(), "the request that showed the item"),
    _field(2, ITEM_ID, LongType(), "the item"),
    _field(3, "event_ts", TimestamptzType(), "when it happened, UTC"),
    _field(4, "label", StringType(), "which label it gives"),
    NestedField(5, USER_ID, LongType(), required=False, doc="who sent it; null: not known, of an earlier version"),
)


@dataclass(kw_only=True)
class _Counts:
    def counts(self) -> dict[str, int]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(kw_only=True)
class CollectReport(_Counts):
    """num_dropped: records that servers had to drop.  num_damaged: lines that could not be read."""

    num_files: int = 0
    num_impressions: int = 0
    num_clicks: int = 0
    num_dropped: int = 0
    num_damaged: int = 0


@dataclass(kw_only=True)
class MatureReport(_Counts):
    """num_requests, num_rows: that entered the table.  num_clicked: rows with a label of 1.
    num_young: impressions whose window has not passed.  num_known, num_repeated: mature ones that are in the table
    already, and that were logged more than once, of the days that were read.  num_late: clicks after the window.
    num_unknown: clicks with a label that the table does not have, or on an item that was not shown.
    num_foreign: clicks that another user's events brought.
    num_forgotten: impressions whose history the store does not have any more.
    num_changed: impressions whose history in the store is another one now than when they were answered.
    num_own: impressions whose request brought a history of its own, which the store does not have.
    num_incomplete: impressions without a column that the table requires.
    """

    num_requests: int = 0
    num_rows: int = 0
    num_clicked: int = 0
    num_young: int = 0
    num_known: int = 0
    num_repeated: int = 0
    num_late: int = 0
    num_unknown: int = 0
    num_foreign: int = 0
    num_forgotten: int = 0
    num_changed: int = 0
    num_own: int = 0
    num_incomplete: int = 0
    missing: str = ""

    def counts(self) -> dict[str, int]:
        return {name: value for name, value in super().counts().items() if name.startswith("num_")}


def collect_impressions(folder: Path | str, catalog: Catalog, namespace: str) -> CollectReport:
    """Move the records of closed log files into the tables; the files go when their records are there."""
    impressions = _table(catalog, f"{namespace}.{IMPRESSIONS}", _IMPRESSIONS, REQUEST_TS)
    clicks = _table(catalog, f"{namespace}.{CLICKS}", _CLICKS, "event_ts")
    there = _collected(impressions)
    report = CollectReport()
    files = sealed_files(folder)
    for path in files:
        if path.name in there:  # killed after the commit
            path.unlink()
    files = [path for path in files if path.name not in there]
    for first in range(0, len(files), FILES_TOGETHER):
        together = files[first : first + FILES_TOGETHER]
        records = [read_log(path) for path in together]
        names = {FILES_PROPERTY: json.dumps([path.name for path in together])}
        # Clicks first: one that is there twice counts once.
        if any(one.clicks for one in records):
            clicks.append(_click_rows(records, clicks), snapshot_properties=names)
        impressions.append(_impression_rows(records, impressions), snapshot_properties=names)
        for path in together:
            path.unlink()
        report.num_files += len(together)
        for one in records:
            report.num_impressions += len(one.impressions)
            report.num_clicks += len(one.clicks)
            report.num_dropped += one.num_dropped
            report.num_damaged += one.num_damaged
    return report


def mature_impressions(
    catalog: Catalog,
    namespace: str,
    target: Table,
    store: Store,
    *,
    window_s: float = 86_400.0,
    lateness_s: float = 3_600.0,
    now_s: float | None = None,
) -> MatureReport:
    """Append the mature impressions of a namespace, labelled, to `target`, a table of engagements as they arrive.

    store: gives the histories that the impressions were answered from.
    window_s: after an impression, in which a click counts.  lateness_s: that a click may need to be collected.
    now_s: seconds since 1970; the clock if None.  Raises ValueError for a target that is not in order of arrival.
    """
    if table_layout(target) is not Layout.ARRIVAL:
        raise ValueError(
            f"{'.'.join(target.name())}: a table in order of arrival required (raw_engagements), found "
            f"{table_layout(target).value}"
        )
    report = MatureReport()
    try:
        impressions = catalog.load_table(f"{namespace}.{IMPRESSIONS}")
        clicks = catalog.load_table(f"{namespace}.{CLICKS}")
    except NoSuchTableError:
        return report
    cutoff_us = int(((time.time() if now_s is None else now_s) - window_s - lateness_s) * _US)
    note = note_of(impressions, target.refresh())
    wanted, days = _unmatured(impressions, target, cutoff_us, report)
    left: set[int] = set()
    if len(wanted):
        of_request = _clicks_of(clicks, wanted, since_day=int(days[0]) - 1)
        schema, these = table_schema(target), on_days(days.tolist())
        batches = _rows(impressions, these, wanted, of_request, schema, store, int(window_s * _US), report, left)
        first = next(batches, None)
        if first is not None:
            write(target, (batch for part in ([first], batches) for batch in part), mode="append")
    keep_note(impressions, target, replace(note, from_day=day_of(cutoff_us), left=tuple(sorted(left))))
    return report


def impressions_of(rows: pa.Table | pa.RecordBatch) -> Iterator[Impression]:
    """Rows of the table `impressions` as they were logged."""
    for row in rows.select([field.name for field in _IMPRESSIONS.fields]).to_pylist():
        names, logits = row.pop("labels"), np.array(row.pop("logits"), np.float32)
        slate = np.array(row["slate"], np.int64)
        row |= {
            REQUEST_TS: _microseconds(row[REQUEST_TS]),
            ITEM_ID: np.array(row[ITEM_ID], np.int64),
            "slate": slate,
            "score": np.array(row["score"], np.float64),
            "request": json.loads(row["request"]),
            "items": {name: np.array(values) for name, values in json.loads(row["items"]).items()},
        }
        yield Impression(**row, logits=dict(zip(names, logits.reshape(len(names), len(slate)))))


def _table(catalog: Catalog, identifier: str, schema: Schema, time_column: str) -> Table:
    source = schema.find_field(time_column).field_id
    spec = PartitionSpec(PartitionField(source, 1000, DayTransform(), f"{time_column.removesuffix('_ts')}_day"))
    make_namespace(catalog, identifier.rpartition(".")[0])
    table = catalog.create_table_if_not_exists(identifier, schema, partition_spec=spec)
    if lacking := [field for field in schema.fields if field.name not in table.schema().column_names]:
        with table.update_schema() as change:  # it was made by an earlier version
            for field in lacking:
                change.add_column(field.name, field.field_type, doc=field.doc)
    return table


def _collected(table: Table) -> set[str]:
    """Log files whose records are in the table, as far as its snapshots tell; a killed run left the newest."""
    texts = (one.summary.get(FILES_PROPERTY) for one in table.metadata.snapshots if one.summary is not None)
    return {name for text in texts if text for name in json.loads(text)}


def _impression_rows(records: Sequence[LogRecords], table: Table) -> pa.Table:
    rows = []
    for impression in (one for of_file in records for one in of_file.impressions):
        row = dict(vars(impression))
        logits = row.pop("logits")
        row |= {
            "labels": list(logits),
            "logits": np.concatenate([*logits.values(), np.empty(0, np.float32)]).tolist(),
            ITEM_ID: impression.item_id.tolist(),
            "slate": impression.slate.tolist(),
            "score": impression.score.tolist(),
            "request": json.dumps(impression.request),
            "items": json.dumps({name: np.asarray(values).tolist() for name, values in impression.items.items()}),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=table.schema().as_arrow())


def _click_rows(records: Sequence[LogRecords], table: Table) -> pa.Table:
    rows = [dict(vars(click)) for of_file in records for click in of_file.clicks]
    return pa.Table.from_pylist(rows, schema=table.schema().as_arrow())


def _unmatured(impressions: Table, target: Table, cutoff_us: int, report: MatureReport) -> tuple[np.ndarray, ...]:
    """Ids, rising, of mature impressions that are not in the target, and their days; of those that are still open."""
    rows = impressions.scan(still_open(impressions, target), selected_fields=(REQUEST_ID, REQUEST_TS)).to_arrow()
    request_id, request_ts = rows.column(REQUEST_ID).to_numpy(), rows.column(REQUEST_TS).cast(pa.int64()).to_numpy()
    is_mature = request_ts <= cutoff_us
    mature, first, count = np.unique(request_id[is_mature], return_index=True, return_counts=True)
    days = day_of(request_ts[is_mature][first])
    report.num_young = len(np.unique(request_id[~is_mature]))
    report.num_repeated = int((count - 1).sum())
    is_known = np.zeros(len(mature), bool)
    if len(mature):
        there = target.scan(on_days(days.tolist()), selected_fields=(REQUEST_ID,))
        for batch in there.to_arrow_batch_reader():
            is_known |= np.isin(mature, batch.column(0).to_numpy())
    report.num_known = int(is_known.sum())
    return mature[~is_known], np.unique(days[~is_known])


def _clicks_of(clicks: Table, wanted: np.ndarray, since_day: int) -> dict[int, set[Click]]:
    of_request: dict[int, set[Click]] = {}
    for batch in clicks.scan(on_days((), since_day, column="event_ts")).to_arrow_batch_reader():
        is_wanted = pa.array(np.isin(batch.column(REQUEST_ID).to_numpy(), wanted))
        for row in batch.filter(is_wanted).to_pylist():
            click = Click(**{**row, "event_ts": _microseconds(row["event_ts"])})
            of_request.setdefault(click.request_id, set()).add(click)
    return of_request


def _rows(
    impressions: Table,
    these: BooleanExpression,
    wanted: np.ndarray,
    clicks: Mapping[int, set[Click]],
    schema: EngagementSchema,
    store: Store,
    window_us: int,
    report: MatureReport,
    left: set[int],
) -> Iterator[pa.RecordBatch]:
    """Rows of the wanted impressions. left: gets the days of those that give none though they showed something."""
    seen: set[int] = set()
    labelled: list[LabelledImpression] = []
    for batch in impressions.scan(row_filter=these).to_arrow_batch_reader():
        is_wanted = pa.array(np.isin(batch.column(REQUEST_ID).to_numpy(), wanted))
        for impression in impressions_of(batch.filter(is_wanted)):
            if impression.request_id in seen:
                continue
            seen.add(impression.request_id)
            if not len(impression.slate):  # nothing was shown: no row, and nothing to count
                continue
            window = _window(store, impression, report)
            if window is None:
                left.add(day_of(impression.request_ts))
                continue
            labels = _labels(impression, clicks.get(impression.request_id, ()), schema, window_us, report)
            one = LabelledImpression(impression, window, labels)
            if missing := one.missing(schema):
                left.add(day_of(impression.request_ts))
                report.num_incomplete += 1
                report.missing = report.missing or f"request {impression.request_id}: {missing}"
                continue
            labelled.append(one)
            if len(labelled) == REQUESTS_TOGETHER:
                yield _counted(labelled, schema, report)
                labelled = []
    if labelled:
        yield _counted(labelled, schema, report)


def _window(store: Store, impression: Impression, report: MatureReport) -> Window | None:
    """What the impression was answered from; None, counted, if it is not there as it was."""
    ask = {"at": impression.history_end, "version": impression.timeline_version}
    try:
        window = store.window(impression.user_id, list(store.columns), start_of=lambda _: impression.start, **ask)
    except ValueError:
        window = None
    if window is None and impression.history_end == 0:
        empty = {name: np.empty(0, dtype) for name, dtype in store.columns.items()}
        return Window(empty, 0, 0, impression.timeline_version)
    is_there = window is not None and window.start == impression.start
    if window is not None and is_there and is_history(window.columns, impression.history_digest):
        return window
    if is_own(impression.history_digest):
        report.num_own += 1
    elif is_there:
        report.num_changed += 1
    else:
        report.num_forgotten += 1
    return None


def _labels(
    impression: Impression, clicks: Iterable[Click], schema: EngagementSchema, window_us: int, report: MatureReport
) -> dict[str, np.ndarray]:
    """For each label 1 or 0 of every item of the slate."""
    labels = {column.name: np.zeros(len(impression.slate), np.int64) for column in schema.labels}
    for click in clicks:
        is_item = impression.slate == click.item_id
        if click.label not in labels or not is_item.any() or click.event_ts < impression.request_ts:
            report.num_unknown += 1
        elif click.user_id not in (None, impression.user_id):
            report.num_foreign += 1
        elif click.event_ts > impression.request_ts + window_us:
            report.num_late += 1
        else:
            labels[click.label][is_item] = 1
    return labels


def _counted(labelled: Sequence[LabelledImpression], schema: EngagementSchema, report: MatureReport) -> pa.RecordBatch:
    report.num_requests += len(labelled)
    report.num_rows += sum(len(one.impression.slate) for one in labelled)
    report.num_clicked += sum(one.num_clicked for one in labelled)
    return rows_of(labelled, schema)


def _microseconds(moment: Any) -> int:
    return int(pa.scalar(moment, pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py())
