"""Compaction: the files that appends left in a partition become what one write of its rows would have made.

    bucket 3   day 1 (full)  day 2 (small)  day 3 (small)   ->   one file, in order, every request whole

The writer does the work, so compacted files differ in nothing from written ones. A bucket is one commit, which replaces
exactly the files that were read: what others append meanwhile stays beside it, and a run that was killed leaves its
finished buckets finished. Memory is that of a write; the disk holds one bucket's deduplicated rows. If another engine
changed the bucket count, all buckets are one commit, since a reader needs one partition spec for all files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.dedup.checksum import RunningChecksum, content_checksum
from reqdedup.dedup.streams import ROW_KEY, merge_streams
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.changes import check_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import ConflictError, IntegrityError
from reqdedup.storage.iceberg.layout import Layout, table_layout
from reqdedup.storage.iceberg.retries import CommitRetries
from reqdedup.storage.iceberg.same_requests import OPERATION
from reqdedup.storage.iceberg.settings import renewed
from reqdedup.storage.maintenance.fit import misfit
from reqdedup.storage.maintenance.live import LiveFile, by_partition, is_compact, live_files
from reqdedup.storage.maintenance.user_rows import rewrite_schema
from reqdedup.storage.read.feature_table import is_feature_table
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.write.writer import set_properties, write_in_order, write_rows

ATTEMPTS = 5
"""Of one bucket whose files another writer replaced while they were rewritten."""


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What a compaction did. buckets: rewritten (days of an ARRIVAL table).

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


def compact(
    table: Table,
    buckets: Iterable[int] | None = None,
    *,
    one_commit: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    spill_dir: str | Path | None = None,
) -> CompactReport:
    """Rewrite every bucket whose files are several and small, or out of order, into the form of one write.

    buckets: only these (of an ARRIVAL table: days since 1970); None means all.  force: those too that need it not.
    one_commit: for all of them; else one each, which a killed run need not repeat.
    progress: called with buckets done and buckets in total.  spill_dir: for temporary files of one bucket.
    If the forms that were chosen for the columns fit no more, they are chosen anew (see `misfit`); row groups of the
    defaults of before take those of now.
    Rows are verified by checksum before each commit. Raises ValueError for tables that have no such form and for two
    parts of a request that disagree; ConflictError if other writers replaced the same files again and again.
    """
    started = time.monotonic()
    table.refresh()
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
    renew = bool(chosen) and misfit(table, [file for files in groups.values() for file in files]) is not None
    done: list[_Rewritten] = []
    for number, together in enumerate([chosen] if one_commit and chosen else [[one] for one in chosen]):
        done.append(_rewrite(table, layout, together, force=force, renew=renew and not number, spill_dir=spill_dir))
        if progress is not None:
            progress((number + 1) * len(together), len(chosen))
    return CompactReport(
        buckets=tuple(bucket for one in done for bucket in one.buckets),
        left_alone=len(considered) - len(chosen),
        rows=sum(one.rows for one in done),
        files=sum(one.files for one in done),
        old_files=sum(one.old_files for one in done),
        bytes=sum(one.bytes for one in done),
        old_bytes=sum(one.old_bytes for one in done),
        seconds=time.monotonic() - started,
        snapshot_id=next((one.snapshot_id for one in reversed(done) if one.snapshot_id is not None), None),
    )


@dataclass(frozen=True)
class _Rewritten:
    buckets: tuple[int, ...]
    rows: int = 0
    files: int = 0
    old_files: int = 0
    bytes: int = 0
    old_bytes: int = 0
    snapshot_id: int | None = None


def _rewrite(
    table: Table,
    layout: Layout,
    buckets: list[int | None],
    *,
    force: bool,
    renew: bool,
    spill_dir: str | Path | None,
) -> _Rewritten:
    name = ".".join(table.name())
    for attempt in range(ATTEMPTS):
        if attempt:
            CommitRetries.of(table.properties).wait(attempt)  # two that rewrite one bucket must get out of step
            table.refresh()
        groups = _groups(table)
        if None in groups and None not in buckets:
            raise ConflictError(
                f"{name}: one partition spec for all files required, found it changed by another engine in the "
                "meantime; buckets before are done, run it again: it then rewrites all of them at once"
            )
        due = [bucket for bucket in buckets if bucket in groups and (force or _is_due(bucket, groups, layout))]
        if not due:  # another run was here
            return _Rewritten(())
        try:
            return _rewrite_once(table, {bucket: groups[bucket] for bucket in due}, spill_dir, renew=renew)
        except ConflictError as error:
            conflict = error
    which = "all buckets" if None in buckets else f"bucket {', '.join(map(str, buckets[:8]))}"
    raise ConflictError(
        f"{name}: {which} left alone by others required while it is rewritten, "
        f"found its files replaced {ATTEMPTS} times; buckets before it are done, run it again when the other writer is"
    ) from conflict


def _groups(table: Table) -> dict[int | None, list[LiveFile]]:
    """Files by bucket; by None, all of them if some lie in another partition spec than the table has now."""
    files = live_files(table)
    stale = any(file.data_file.spec_id != table.metadata.default_spec_id for file in files)
    return {None: files} if stale else by_partition(files)


def _is_due(partition: int | None, groups: dict[int | None, list[LiveFile]], layout: Layout) -> bool:
    return partition is None or not is_compact(groups[partition], layout)


def _rewrite_once(
    table: Table, groups: dict[int | None, list[LiveFile]], spill_dir: str | Path | None, *, renew: bool
) -> _Rewritten:
    schema = rewrite_schema(table)
    is_bucketed = table_layout(table).is_bucketed
    old = [file for files in groups.values() for file in files]
    before, num_requests = RunningChecksum(), 0
    row_groups = renewed(table.properties, table_layout(table), schema)
    with StagedFiles(table, schema, set_properties(row_groups)) as files:
        for bucket, group in groups.items():
            streams = [before.through(table_files(table, [file.path], schema).batches()) for file in group]
            if bucket is not None and is_bucketed and all(file.is_sorted for file in group):
                rows = merge_streams(streams, [key for key in ROW_KEY if key in schema.names], ".".join(table.name()))
                written = write_in_order(files, [(bucket, rows)], schema, renew=renew)
                requests = max((done.requests for done in written), default=0)
            else:
                _, requests = write_rows(files, chain.from_iterable(streams), schema, spill_dir=spill_dir, renew=renew)
            renew = False
            num_requests += requests
        files.verify(num_rows=sum(file.num_rows for file in old), num_requests=num_requests if is_bucketed else None)
        check_same_rows(table, schema, before, files.data_files)
        snapshot_id = files.commit(
            replace=True,
            removed=[file.data_file for file in old],
            rebase=True,
            properties={OPERATION: "compact"},
        )
        new = files.data_files
    return _Rewritten(
        buckets=tuple(sorted({int(file.partition[0]) for file in new})),
        rows=sum(file.record_count for file in new),
        files=len(new),
        old_files=len(old),
        bytes=sum(file.file_size_in_bytes for file in new),
        old_bytes=sum(file.num_bytes for file in old),
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
