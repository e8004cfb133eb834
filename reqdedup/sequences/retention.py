"""Retention applied: what arrived longer ago than every definition keeps its events is cleared, everywhere.

    user_events       whole months: of an event its user, its numbers and its arrival stay, by which the numbers that
                      requests hold go on to mean the same; all else is null
    raw_events        whole days go; rejected_events with them
    earlier versions  go if all their requests are as old; others hold files until they do

Sequences end where the cleared events begin (`TimelineState.kept_from_us`). Bytes are free once old snapshots are
expired. A definition without a retention keeps all events of the timeline that it shares.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_ID, EVENT_TS, EVENT_TYPE, USER, duration_us
from reqdedup.sequences.naive import DAY_US
from reqdedup.sequences.published import published_definitions
from reqdedup.sequences.tables import (
    INDEX,
    POSITION,
    RAW_ENCODINGS,
    RAW_PROPERTY,
    REJECTED_TABLE,
    TIMELINE_PROPERTY,
    VERSION,
    delivered_of,
    load_raw,
    state_of,
)
from reqdedup.sequences.timeline import Timeline, open_timeline, row_files, staged_ref, versions
from reqdedup.storage.iceberg.evolve import commit_refs, ref_snapshot, remove_ref
from reqdedup.storage.iceberg.manifests import data_files
from reqdedup.storage.iceberg.row_files import RowFiles
from reqdedup.storage.maintenance.row_deletion import delete_rows


@dataclass(kw_only=True)
class RetentionReport:
    """What is beyond the retention: cleared, or would be. kept_from: first day of which events stay; None if all do.

    num_events: of the timeline.  num_delivered: of raw_events.  versions: of the timeline that go.
    held_by: earlier versions that still hold cleared events.
    """

    kept_from: datetime | None = None
    num_events: int = 0
    num_delivered: int = 0
    versions: list[int] = field(default_factory=list)
    held_by: list[int] = field(default_factory=list)


def apply_retention(
    catalog: Catalog, namespace: str, *, apply: bool = False, now: datetime | None = None
) -> RetentionReport:
    """Clear what is beyond the retention of the published definitions; without `apply` only say what that is.

    Run again after a kill, it goes on where it was. Raises ValueError if there is no timeline, ConflictError if
    another run was faster.
    """
    timeline, raw, report = open_timeline(catalog, namespace), load_raw(catalog, namespace), RetentionReport()
    live = [one for one in published_definitions(catalog, namespace).values() if one.stage != "retired"]
    lengths = [duration_us(one.retention) for one in live if one.retention is not None]
    if not live or len(lengths) < len(live):
        return report
    now_us = round((now or datetime.now(UTC)).timestamp() * 1e6)
    month = np.datetime64(now_us - max(lengths), "us").astype("datetime64[M]")
    kept_from_us = max(timeline.state.kept_from_us, int(month.astype("datetime64[us]").astype(np.int64)))
    report.kept_from = datetime.fromtimestamp(kept_from_us / 1e6, UTC)
    was_month, month_number = _month_of(timeline.state.kept_from_us), _month_of(kept_from_us)
    old = [file for file in timeline.files if was_month <= int(file.partition[1]) < month_number]
    current = raw.current_snapshot()
    delivered = data_files(raw, current.snapshot_id) if current is not None else []
    gone = [file for file in delivered if int(file.partition[0]) < kept_from_us // DAY_US]
    report.num_events = sum(file.record_count for file in old)
    report.num_delivered = sum(file.record_count for file in gone)
    for version in versions(timeline.table):
        snapshot_id = ref_snapshot(timeline.table, staged_ref(version))
        if version < timeline.state.version and snapshot_id is not None:
            is_old = state_of(timeline.table, version, snapshot_id).arrival_us < kept_from_us
            (report.versions if is_old else report.held_by).append(version)
    if not apply:
        return report
    if kept_from_us > timeline.state.kept_from_us:
        _clear(timeline, old, kept_from_us)
    if report.versions:
        refs = [staged_ref(version) for version in report.versions]
        expected = {ref: ref_snapshot(timeline.table, ref) for ref in refs}
        commit_refs(timeline.table, [remove_ref(ref) for ref in refs], expected=expected)
    if gone:
        with RowFiles(raw, RAW_ENCODINGS) as files:
            files.commit(removed=gone, properties={RAW_PROPERTY: vars(delivered_of(raw))})
    first = min((_first_position(raw, file) for file in delivered if file not in gone), default=None)
    _clear_rejected(catalog, namespace, delivered_of(raw).next_position if first is None else first)
    return report


def _clear_rejected(catalog: Catalog, namespace: str, first: int) -> None:
    """Delete what was rejected among deliveries before a position."""
    try:
        rejected = catalog.load_table(f"{namespace}.{REJECTED_TABLE}")
    except NoSuchTableError:
        return
    delete_rows(rejected, lambda rows: rows.column(POSITION).to_numpy() < first, row_filter=f"{POSITION} < {first}")


def _clear(timeline: Timeline, old: list[DataFile], kept_from_us: int) -> None:
    """Write these files with numbers alone, in one commit with the time from which events are kept."""
    kept = {USER, INDEX, VERSION, ARRIVAL_TS, *(one.rank_column for one in timeline.definitions)}
    state = replace(timeline.state, kept_from_us=kept_from_us)
    with row_files(timeline.table) as files:
        for file in old:
            rows = timeline.read_file(file, [one for one in timeline.schema.names if one in kept])
            columns = []
            for one in timeline.schema:
                if one.name == EVENT_TS:
                    columns.append(rows.column(ARRIVAL_TS).cast(one.type))
                elif one.name in (EVENT_ID, EVENT_TYPE):  # required
                    columns.append(pa.array(np.zeros(len(rows), np.int64)).cast(one.type))
                else:
                    columns.append(rows.column(one.name) if one.name in kept else pa.nulls(len(rows), one.type))
            files.write([int(file.partition[0]), int(file.partition[1])], pa.table(columns, schema=timeline.schema))
        files.commit(removed=old, properties={TIMELINE_PROPERTY: state.plain()})


def _month_of(us: int) -> int:
    return int(np.datetime64(us, "us").astype("datetime64[M]").astype(np.int64))


def _first_position(raw: Table, file: DataFile) -> int:
    field_id = raw.schema().find_field(POSITION).field_id
    return int.from_bytes(file.lower_bounds[field_id], "little", signed=True)
