"""Compaction: the files that appends left in a partition become what one write of its rows would have made.

    bucket 3   day 1 (full)  day 2 (small)  day 3 (small)   ->   one file, in order, every request whole

The writer does the work, so compacted files differ in nothing from written ones. A bucket is a task, and up to 32
neighbours are one commit, which replaces exactly the files that were read: what others append meanwhile stays beside
them, and a run that was killed leaves its finished groups finished. Memory is that of a write, per process; the disk
holds one bucket's deduplicated rows. If another engine changed the bucket count, all buckets are one task and one
commit, since a reader needs one partition spec for all files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.dedup.checksum import RunningChecksum, content_checksum
from reqdedup.dedup.streams import ROW_KEY, merge_streams
from reqdedup.distributed import Engine, engine_for
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.changes import check_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import ConflictError, IntegrityError
from reqdedup.storage.iceberg.layout import Layout, table_layout
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.retries import CommitRetries
from reqdedup.storage.iceberg.same_requests import OPERATION
from reqdedup.storage.iceberg.settings import renewed
from reqdedup.storage.iceberg.vocabulary import is_vocabulary
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.maintenance.fit import misfit
from reqdedup.storage.maintenance.item_files import compact_items
from reqdedup.storage.maintenance.live import LiveFile, by_partition, is_compact, live_files
from reqdedup.storage.maintenance.user_rows import rewrite_schema
from reqdedup.storage.read.feature_table import is_feature_table
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.tasks import GroupCommits, Landed, Part, groups_of, is_decided
from reqdedup.storage.write.writer import lead_of, set_properties, write_in_order, write_rows

ATTEMPTS = 5
"""Of buckets whose files another writer replaced while they were rewritten."""


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What a compaction did. buckets: rewritten (days of an ARRIVAL table; 0 of a vocabulary of items).

    rows: of them.  files, bytes: after; old_files, old_bytes: before.  The old ones stay until their snapshots expire.
    left_alone: buckets that were in their final form already.  snapshot_id: of the last commit;
        None if nothing was to do.
    """

    buckets: tuple[int, ...]
    left_alone: int
    rows: int
    files: int
    old_files: int
    bytes: int
    old_bytes: int
    seconds: float
    snapshot_id: int | None


@dataclass(frozen=True, kw_only=True)
class CompactTask:
    """One bucket to rewrite. bucket: None for all of them at once.  is_sorted: whether each file is, by the keys.

    num_bytes: of the files.
    """

    bucket: int | None
    paths: tuple[str, ...]
    is_sorted: bool
    num_bytes: int = 0
    write_id: str = ""

    @property
    def name(self) -> str:
        return "all buckets" if self.bucket is None else f"bucket {self.bucket}"


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What the tasks of a compaction share. schema: of the files, before and after.  renew: see `run_alike`."""

    table: PortableTable
    schema: EngagementSchema
    updates: tuple[TableUpdate, ...]
    spill_dir: str | Path | None = None
    renew: bool = False

    def run(self, task: CompactTask) -> Written:
        """Write the bucket's rows again, and read them back: all of them, all columns."""
        table, schema, before = self.table.table, self.schema, RunningChecksum()
        is_bucketed = table_layout(table).is_bucketed
        with StagedFiles(table, schema, self.updates, write_id=task.write_id) as files:
            streams = [before.through(table_files(table, [path], schema).batches()) for path in task.paths]
            if task.bucket is not None and is_bucketed and task.is_sorted:
                rows = merge_streams(streams, [key for key in ROW_KEY if key in schema.names], ".".join(table.name()))
                written = write_in_order(files, [(task.bucket, rows)], schema, renew=self.renew)
                requests = max((done.requests for done in written), default=0)
            else:
                rows = chain.from_iterable(streams)
                requests = write_rows(files, rows, schema, spill_dir=self.spill_dir, renew=self.renew).requests
            check_same_rows(table, schema, before, files.data_files)
            return files.hand_over(before.so_far, num_requests=requests if is_bucketed else None)


def compact(
    table: Table,
    buckets: Iterable[int] | None = None,
    *,
    one_commit: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    spill_dir: str | Path | None = None,
    engine: str | Engine | None = None,
) -> CompactReport:
    """Rewrite every bucket whose files are several and small, or out of order, into the form of one write.

    buckets: only these (of an ARRIVAL table: days since 1970); None means all.  force: those too that need it not.
    one_commit: for all of them; else one for up to 32, which a killed run need not repeat.
    progress: called with buckets done and buckets in total.  spill_dir: for temporary files of one bucket.
    engine: where buckets are rewritten: "inline", "processes:N"; see `reqdedup.distributed`.
    If the forms that were chosen for the columns fit no more, they are chosen anew (see `misfit`); row groups of the
    defaults of before take those of now.
    Rows are verified by checksum before each commit. Raises ValueError for tables that have no such form and for two
    parts of a request that disagree; ConflictError if other writers replaced the same files again and again.
    A vocabulary of items becomes one file, whatever else was asked for.
    """
    started = time.monotonic()
    table.refresh()
    if is_vocabulary(table):
        return _items_report(*compact_items(table), started)
    layout, name = table_layout(table), ".".join(table.name())
    if is_feature_table(table):
        raise ValueError(
            f"{name}: an engagement table required, found a feature table; its buckets always have one file"
        )
    if layout is Layout.SHUFFLED:
        raise ValueError(
            f"{name}: a layout with partitions required, found SHUFFLED, whose random order goes over the whole table; "
            "write it again with mode='replace'"
        )
    check_spec(table)
    rewrite_schema(table)
    groups = _groups(table)
    asked = None if buckets is None else set(buckets)
    if None in groups and asked is not None:
        raise ValueError(
            f"{name}: all buckets at once required, since another engine changed the partition spec and readers need "
            f"one for all files, found {sorted(asked)[:8]}; compact the table without naming buckets"
        )
    unknown = sorted((asked or set()) - set(groups))
    if unknown:
        raise ValueError(
            f"{name}: buckets with rows required, found {unknown[:8]}; those with rows are {_some(groups)}"
        )
    considered = [partition for partition in groups if asked is None or partition in asked]
    chosen = [partition for partition in considered if force or _is_due(partition, groups, layout)]
    run = _Run(table, layout, force, one_commit, spill_dir, engine, progress, len(chosen))
    run.rewrite({bucket: groups[bucket] for bucket in chosen}, groups)
    written = [one for landed in run.landed for one in landed.written]
    new = [data_file for one in written for data_file, _ in one.files]
    old = [data_file for landed in run.landed for part in landed.parts for data_file in part.removed]
    return CompactReport(
        buckets=tuple(sorted({int(file.partition[0]) for file in new})),
        left_alone=len(considered) - len(chosen),
        rows=sum(one.rows for one in written),
        files=len(new),
        old_files=len(old),
        bytes=sum(file.file_size_in_bytes for file in new),
        old_bytes=sum(file.file_size_in_bytes for file in old),
        seconds=time.monotonic() - started,
        snapshot_id=next((one.snapshot_id for one in reversed(run.landed) if one.snapshot_id is not None), None),
    )


class _Run:
    """One compaction: what it was asked for, and the commits that have landed."""

    def __init__(
        self,
        table: Table,
        layout: Layout,
        force: bool,
        one_commit: bool,
        spill_dir: str | Path | None,
        engine: str | Engine | None,
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        self._table, self._layout, self._force, self._one_commit = table, layout, force, one_commit
        self._spill_dir, self._engine, self._progress, self._total = spill_dir, engine, progress, total
        self._num_done = 0
        self.landed: list[Landed] = []

    def rewrite(self, due: dict[int | None, list[LiveFile]], groups: dict[int | None, list[LiveFile]]) -> None:
        """Rewrite these buckets, and again those whose files others replace meanwhile."""
        renew = bool(due) and misfit(self._table, chain.from_iterable(groups.values())) is not None
        for attempt in range(ATTEMPTS):
            stale = self._rewrite_once(due, renew=renew) if due else set()
            if not stale:
                return
            renew = False
            CommitRetries.of(self._table.properties).wait(attempt)  # two that rewrite one bucket must get out of step
            due = self._still_due(stale)
        which = "all buckets" if None in stale else f"bucket {', '.join(map(str, sorted(stale, key=str)[:8]))}"
        raise ConflictError(
            f"{'.'.join(self._table.name())}: {which} left alone by others required while it is rewritten, "
            f"found its files replaced {ATTEMPTS} times; other buckets are done, run it again when the other writer is"
        )

    def _still_due(self, stale: Collection[int | None]) -> dict[int | None, list[LiveFile]]:
        """Of buckets that others have changed, those that still need it: another run may have been here."""
        groups = _groups(self._table.refresh())
        if None in groups and None not in stale:
            raise ConflictError(
                f"{'.'.join(self._table.name())}: one partition spec for all files required, found it changed by "
                "another engine in the meantime; buckets before are done, run it again: it then rewrites all of them "
                "at once"
            )
        still = (bucket for bucket in stale if bucket in groups)
        return {bucket: groups[bucket] for bucket in still if self._force or _is_due(bucket, groups, self._layout)}

    def _rewrite_once(self, due: dict[int | None, list[LiveFile]], *, renew: bool) -> set[int | None]:
        """Rewrite these buckets; those that others have changed meanwhile."""
        table, schema = self._table, rewrite_schema(self._table)
        updates = set_properties(renewed(table.properties, self._layout, schema))
        work = Compaction(
            table=PortableTable(table), schema=schema, updates=updates, spill_dir=self._spill_dir, renew=renew
        )
        parts = [_part(bucket, files) for bucket, files in due.items()]
        num_bytes = sum(part.num_bytes for part in parts)
        engine = engine_for(self._engine, work, num_tasks=len(parts), num_bytes=num_bytes)
        decided = is_decided(table, schema, updates) and not renew
        lead = None if decided else lead_of([part.num_rows or 0 for part in parts])
        commits = GroupCommits(table, schema, updates, properties=lambda together: {OPERATION: "compact"})
        groups = groups_of(parts, together=self._one_commit)
        stale: set[int | None] = set()
        for landed in commits.run(work, groups, engine, lead=lead, progress=self._count):
            self.landed.append(landed)
            stale |= {part.task.bucket for part in landed.stale}
        return stale

    def _count(self) -> None:
        self._num_done = min(self._num_done + 1, self._total)
        if self._progress is not None:
            self._progress(self._num_done, self._total)


def _part(bucket: int | None, files: Sequence[LiveFile]) -> Part:
    task = CompactTask(
        bucket=bucket,
        paths=tuple(file.path for file in files),
        is_sorted=all(file.is_sorted for file in files),
    )
    return Part(task, tuple(file.data_file for file in files), sum(file.num_rows for file in files))


def _groups(table: Table) -> dict[int | None, list[LiveFile]]:
    """Files by bucket; by None, all of them if some lie in another partition spec than the table has now."""
    files = live_files(table)
    stale = any(file.data_file.spec_id != table.metadata.default_spec_id for file in files)
    return {None: files} if stale else by_partition(files)


def _is_due(partition: int | None, groups: dict[int | None, list[LiveFile]], layout: Layout) -> bool:
    return partition is None or not is_compact(groups[partition], layout)


def _items_report(
    old: Sequence[DataFile], new: Sequence[DataFile], snapshot_id: int | None, started: float
) -> CompactReport:
    is_done = snapshot_id is not None
    return CompactReport(
        buckets=(0,) if is_done else (),
        left_alone=int(not is_done),
        rows=sum(file.record_count for file in new),
        files=len(new),
        old_files=len(old),
        bytes=sum(file.file_size_in_bytes for file in new),
        old_bytes=sum(file.file_size_in_bytes for file in old),
        seconds=time.monotonic() - started,
        snapshot_id=snapshot_id,
    )


def check_same_rows(table: Table, schema: EngagementSchema, before: RunningChecksum, files: Sequence[DataFile]) -> None:
    """Raise IntegrityError unless these new files hold exactly the rows that were counted, all columns of them."""
    after = content_checksum(table_files(table, [file.file_path for file in files], schema))
    if before.so_far != after:
        raise IntegrityError(
            f"{'.'.join(table.name())}: the same rows after the rewrite required ({before.so_far}), found {after}; "
            "nothing was committed. This is a defect of the reader or the writer: report it"
        )


def _some(groups: dict[int | None, list[LiveFile]]) -> str:
    partitions = [partition for partition in groups if partition is not None]
    return ", ".join(map(str, partitions[:16])) + (" ..." if len(partitions) > 16 else "") if partitions else "none"
