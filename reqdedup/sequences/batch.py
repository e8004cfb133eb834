"""The timeline brought forward: `advance` brings it to what was delivered, `backfill` makes a new version of it.

Both run `TimelineBuilder` over a range of positions. A commit adds the rows and moves the watermark in one step: a run
that is killed before it has changed nothing, one that is repeated after it finds nothing to do. A new version is made
on a branch, checked, and published in one step that leaves a tag at the old one (docs/decisions/0058).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.update import SetPropertiesUpdate

from reqdedup.arrays.keys import first_disorder, run_starts
from reqdedup.arrays.ranges import ranges
from reqdedup.sequences.definition import ARRIVAL_TS, USER, EventLog, SequenceDefinition, check_together, enrichments_of
from reqdedup.sequences.delivered import PART_ROWS, DeliveredRange
from reqdedup.sequences.lookups import load_lookups, lookup_dtypes
from reqdedup.sequences.naive import HORIZON_US
from reqdedup.sequences.published import published_definitions
from reqdedup.sequences.standing import Standing
from reqdedup.sequences.tables import (
    INDEX,
    LOG_PROPERTY,
    TIMELINE_PROPERTY,
    TIMELINE_TABLE,
    TimelineState,
    add_optional_columns,
    delivered_of,
    kept_state,
    load_raw,
    load_timeline,
    log_of,
    make_timeline,
    state_of,
    texts,
    timeline_schema,
)
from reqdedup.sequences.timeline import (
    Timeline,
    each_bucket,
    open_timeline,
    rank_steps,
    row_files,
    staged_ref,
    write_rows,
)
from reqdedup.sequences.timeline_builder import EventCounts, TimelineBuilder
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.evolve import MAIN, commit_refs, move_ref, ref_snapshot, remove_ref
from reqdedup.storage.iceberg.manifests import data_files

NUM_BUCKETS = 16


@dataclass(kw_only=True)
class AdvanceReport:
    """What a run made. version: of the timeline.  position: the watermark after it.

    num_files: of the timeline, written.  num_bytes: of them and of the file of where users stand.
    """

    version: int
    position: int
    counts: EventCounts = field(default_factory=EventCounts)
    num_files: int = 0
    num_bytes: int = 0

    def plain(self) -> dict[str, Any]:
        return {**vars(self), "counts": vars(self.counts)}


def advance(
    catalog: Catalog,
    namespace: str,
    definitions: Sequence[SequenceDefinition] | None = None,
    *,
    num_buckets: int = NUM_BUCKETS,
    horizon_us: int = HORIZON_US,
    part_rows: int = PART_ROWS,
) -> AdvanceReport:
    """Append to the timeline what was delivered since its watermark, in one commit.

    definitions: by default those that are published and not retired.  num_buckets: of a timeline that is made now.
    horizon_us: for how long a redelivery is known as one.  part_rows: delivered events to hold in memory at once.
    Raises ValueError if the timeline was made from other definitions, ConflictError if another run was faster.
    """
    raw = load_raw(catalog, namespace)
    wanted = _definitions(catalog, namespace, log_of(raw), definitions)
    lookups = load_lookups(catalog, enrichments_of(wanted))
    try:
        table = catalog.load_table(f"{namespace}.{TIMELINE_TABLE}")
    except NoSuchTableError:
        enriched = lookup_dtypes(enrichments_of(wanted), lookups)
        table = make_timeline(catalog, namespace, log_of(raw), wanted, enriched, num_buckets)
    current = table.current_snapshot()
    timeline = Timeline(table, current.snapshot_id if current is not None else None, state_of(table))
    _check_same(timeline, wanted)
    return _extend(raw, timeline, lookups, MAIN, horizon_us, part_rows)


def backfill(
    catalog: Catalog,
    namespace: str,
    definitions: Sequence[SequenceDefinition] | None = None,
    *,
    horizon_us: int = HORIZON_US,
    part_rows: int = PART_ROWS,
) -> AdvanceReport:
    """Make the whole timeline anew from all delivered events, as a new version on a branch; see `publish_timeline`.

    For a changed definition, a new one, a log with more types or columns, or enrichments that were wrong. Readers see
    nothing of it. What was staged under the number and not published is replaced. Raises as `advance` does.
    """
    raw, table = load_raw(catalog, namespace), load_timeline(catalog, namespace)
    wanted = _definitions(catalog, namespace, log_of(raw), definitions)
    lookups = load_lookups(catalog, enrichments_of(wanted))
    _take_up(table, log_of(raw), wanted, lookup_dtypes(enrichments_of(wanted), lookups))
    version = state_of(table).version + 1
    branch = stage_branch(table, version, main=ref_snapshot(table, MAIN))
    empty = Timeline(table, None, TimelineState(version=version, definitions=texts(wanted)))
    return _extend(raw, empty, lookups, branch, horizon_us, part_rows, replaced=True)


def stage_branch(table: Table, version: int, *, main: int | None) -> str:
    """The branch that a version is staged on, brought to where main is, whatever was staged there before.

    Raises ValueError if there are no events, ConflictError if main is not at this snapshot any more.
    """
    if main is None:
        raise ValueError(f"{'.'.join(table.name())}: events required, found none; run advance instead")
    branch = staged_ref(version)
    if (old := ref_snapshot(table, branch)) != main:
        commit_refs(table, [move_ref(branch, main)], expected={MAIN: main, branch: old})
    return branch


def publish_timeline(catalog: Catalog, namespace: str, *, horizon_us: int = HORIZON_US) -> int:
    """Make the staged version the one that readers see; its number. The old one keeps a tag.

    It is brought to the watermark of the old one and checked first. Raises ValueError if nothing is staged,
    IntegrityError if a check fails, ConflictError if main moved meanwhile.
    """
    table = load_timeline(catalog, namespace)
    current = state_of(table)
    version, branch = current.version + 1, staged_ref(current.version + 1)
    if ref_snapshot(table, branch) is None:
        raise ValueError(
            f"{namespace}.{TIMELINE_TABLE}: a staged version {version} required, found none; run a backfill"
        )
    staged = open_timeline(catalog, namespace, version)
    if staged.state.position < current.position:
        lookups = load_lookups(catalog, enrichments_of(staged.definitions))
        _extend(load_raw(catalog, namespace), staged, lookups, branch, horizon_us, PART_ROWS)
        staged = open_timeline(catalog, namespace, version)
    check_timeline(staged)
    main = ref_snapshot(table, MAIN)
    assert main is not None
    assert staged.snapshot_id is not None
    old = staged_ref(current.version)
    said = SetPropertiesUpdate(updates={TIMELINE_PROPERTY: staged.state.text(), **kept_state(current)})
    commit_refs(
        table,
        [
            move_ref(old, main, SnapshotRefType.TAG),
            move_ref(MAIN, staged.snapshot_id),
            remove_ref(branch),
            said,
        ],
        expected={MAIN: main, branch: staged.snapshot_id, old: None},
    )
    return version


def check_timeline(timeline: Timeline) -> int:
    """The events of a timeline whose order and numbers hold together.

    Raises IntegrityError unless each user's events are numbered without a gap, arrive one after the other, and ranks
    rise by one at most.
    """
    ranks = [one.rank_column for one in timeline.definitions]
    num_events = 0
    for bucket, table in each_bucket(timeline, [ARRIVAL_TS, *ranks]):
        user_T, index_T = (table.column(name).to_numpy() for name in (USER, INDEX))
        arrival_T = table.column(ARRIVAL_TS).cast("int64").to_numpy()
        first_U = run_starts([user_T])
        wrong = []
        length_U = np.diff(first_U, append=len(user_T))
        if not np.array_equal(index_T, ranges(np.zeros(len(first_U)), length_U)):
            wrong.append("numbered without a gap")
        if first_disorder([user_T, arrival_T]) >= 0:
            wrong.append("in the order of arrival")
        for name in ranks:
            if not np.isin(rank_steps(user_T, table.column(name).to_numpy()), (0, 1)).all():
                wrong.append(f"with {name} rising by one")
        if wrong:
            raise IntegrityError(
                f"{'.'.join(timeline.table.name())}: events {' and '.join(wrong)} required, found others in bucket "
                f"{bucket} of version {timeline.state.version}; nothing was published"
            )
        num_events += len(user_T)
    return num_events


def compact_timeline(catalog: Catalog, namespace: str) -> AdvanceReport:
    """Make one file of the several that a bucket has in a month, in one commit; the rows stay as they are."""
    timeline = open_timeline(catalog, namespace)
    report = AdvanceReport(version=timeline.state.version, position=timeline.state.position)
    of_part: dict[tuple[int, int], list[Any]] = {}
    for file in timeline.files:
        of_part.setdefault((int(file.partition[0]), int(file.partition[1])), []).append(file)
    removed = []
    with row_files(timeline.table) as files:
        for part, several in sorted(of_part.items()):
            if len(several) > 1:
                files.write(part, timeline.read_files(several, timeline.schema.names))
                removed += several
        if removed:
            files.commit(removed=removed, properties={TIMELINE_PROPERTY: timeline.state.plain()})
        report.num_files, report.num_bytes, report.counts.num_kept = len(files.files), files.num_bytes, files.num_rows
    return report


def _extend(
    raw: Table,
    timeline: Timeline,
    lookups: dict[str, pl.DataFrame],
    branch: str,
    horizon_us: int,
    part_rows: int,
    *,
    replaced: bool = False,
) -> AdvanceReport:
    """Append to a version what was delivered since its watermark. replaced: what the branch has goes."""
    delivered = delivered_of(raw)
    state = replace(
        timeline.state,
        position=delivered.next_position,
        arrival_us=max(timeline.state.arrival_us, delivered.arrival_us),
    )
    report = AdvanceReport(version=state.version, position=state.position)
    if timeline.state.position >= state.position and not replaced:
        return report
    builder = TimelineBuilder(timeline.log, timeline.definitions, lookups, horizon_us=horizon_us)
    events = DeliveredRange(
        raw,
        timeline.state.position,
        state.position,
        horizon_us=horizon_us,
        since_us=timeline.state.arrival_us,
    )
    removed = data_files(timeline.table, ref_snapshot(timeline.table, branch)) if replaced else []
    standing = Standing(timeline)
    with row_files(timeline.table) as files:
        for part in events.parts(timeline.num_buckets, part_rows):
            ends = partial(standing.ends, buckets=part.buckets)
            rows, counts = builder.run(part.delivered, part.earlier, ends, version=state.version)
            report.counts.add(counts)
            write_rows(files, rows, timeline.num_buckets)
            standing.add(rows)
        report.num_bytes = standing.write(files)
        files.commit(removed=removed, properties={TIMELINE_PROPERTY: state.plain()}, branch=branch)
        report.num_files, report.num_bytes = len(files.files), report.num_bytes + files.num_bytes
    return report


def _definitions(
    catalog: Catalog, namespace: str, log: EventLog, definitions: Sequence[SequenceDefinition] | None
) -> list[SequenceDefinition]:
    if definitions is None:
        definitions = [one for one in published_definitions(catalog, namespace).values() if one.stage != "retired"]
        if not definitions:
            raise ValueError(f"{namespace}: published definitions required, found none; run `reqdedup sequences check`")
    check_together(log, definitions)
    return list(definitions)


def _check_same(timeline: Timeline, wanted: Sequence[SequenceDefinition]) -> None:
    has = {one.name: one.fingerprint for one in timeline.definitions}
    now = {one.name: one.fingerprint for one in wanted}
    if has != now:
        changed = sorted(name for name in has.keys() | now.keys() if has.get(name) != now.get(name))
        raise ValueError(
            f"{'.'.join(timeline.table.name())}: the definitions that the timeline was made from required, found "
            f"{', '.join(changed)} new, changed or gone; stage a new version with `reqdedup sequences backfill`"
        )


def _take_up(table: Table, log: EventLog, definitions: Sequence[SequenceDefinition], enriched: dict[str, str]) -> None:
    """Give the table the log's form and the columns that these definitions need beyond its own, in one commit; rows
    that are there have none of them, and their types keep their places."""
    wanted, has = timeline_schema(log, definitions, enriched), table.schema()
    for one in wanted.fields:
        if one.name in has.column_names and has.find_field(one.name).field_type != one.field_type:
            raise ValueError(
                f"{'.'.join(table.name())}: column {one.name} of {has.find_field(one.name).field_type} required, "
                f"found {one.field_type} now; give the enrichment's column another name"
            )
    is_same = log == log_of(table) and all(one.name in has.column_names for one in wanted.fields)
    if not is_same:
        with table.transaction() as transaction:
            add_optional_columns(transaction, wanted)
            transaction.set_properties({LOG_PROPERTY: log.to_json()})
        table.refresh()
