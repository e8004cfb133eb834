"""Deleting users: their rows leave every table, and only the files that hold them are written again.

    bucket of the user -> files whose user range covers it -> row groups -> the ids themselves: what
    is left holds the user

A file keeps its order and form; rows go as whole requests, so nothing has to be sorted again. Files of the bucketed
layouts are found by bucket, those of ARRIVAL and SHUFFLED by reading the ids alone. A feature table by position follows
its main table; rejected rows are searched by id and by text (`rejected_rows`). Old snapshots keep the rows until they
expire, branches and tags as long as they are there: the report names them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.arrays.keys import run_starts
from reqdedup.dedup.checksum import ContentChecksum, RunningChecksum
from reqdedup.dedup.rows import take_rows
from reqdedup.distributed import Engine, engine_for
from reqdedup.schema import USER_ID, EngagementSchema
from reqdedup.storage.features import realign
from reqdedup.storage.iceberg.changes import check_one_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.evolve import MAIN, commit_refs, remove_ref
from reqdedup.storage.iceberg.layout import Layout, buckets_of, table_buckets, table_layout
from reqdedup.storage.iceberg.manifests import data_files
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.retries import CommitRetries
from reqdedup.storage.iceberg.same_requests import OPERATION
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.maintenance.compaction import check_same_rows
from reqdedup.storage.maintenance.expire import expire_snapshots
from reqdedup.storage.maintenance.live import LiveFile, by_partition, live_files
from reqdedup.storage.maintenance.namespace import feature_tables_of
from reqdedup.storage.maintenance.rejected_rows import count_rejected, delete_rejected
from reqdedup.storage.maintenance.row_deletion import Rewritten
from reqdedup.storage.maintenance.served_rows import (
    comes_last,
    count_served,
    delete_served,
    is_served_table,
    refs_with_served,
    requests_shown,
)
from reqdedup.storage.maintenance.user_rows import (
    RowCounts,
    count_by_position,
    count_rows,
    files_with,
    holding_refs,
    made_from,
    request_keys,
    rewrite_schema,
    user_keys,
)
from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY, is_by_position, is_feature_table
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.tasks import GroupCommits, Landed, Part, groups_of, is_decided
from reqdedup.storage.write.form import in_form
from reqdedup.storage.write.rejects import is_rejects_table
from reqdedup.storage.write.writer import lead_of

ATTEMPTS = 10
"""Of one table whose files another writer replaced, or added the user to, while they were rewritten."""


@dataclass(frozen=True, kw_only=True)
class DeletionReport:
    """What a deletion did to one table, or with dry_run would do.

    rows, requests: deleted.  files: that held the users and are no longer in the table.  rewritten: the files in their
    place, with bytes; both 0 in a dry run.  old_bytes: of `files`.  untouched: files that were left as they are.
    held_by: branches and tags that still hold the users; drop them, they cannot be rewritten.
    snapshots: older ones, which may still hold them and go with `expire_snapshots`.  snapshot_id: of the commit, None
        if there was none.
    """

    table: str
    rows: int
    requests: int
    files: int
    rewritten: int
    untouched: int
    bytes: int
    old_bytes: int
    held_by: tuple[str, ...]
    snapshots: int
    snapshot_id: int | None
    dry_run: bool


def delete_user(
    tables: Table | Sequence[Table],
    user_ids: int | Iterable[int] | np.ndarray | pa.Array,
    *,
    keys: str | Iterable[str] = (),
    requests: Iterable[int] = (),
    dry_run: bool = False,
    drop_refs: bool = False,
    erase: bool = False,
    progress: Callable[[str], None] | None = None,
    engine: str | Engine | None = None,
) -> list[DeletionReport]:
    """Delete all rows of these users from engagement tables of any layout, feature tables, tables of rejected rows and
    those that serving keeps (`served_rows`).

    keys: original ids of the users, of which user_ids are hashes, to look for in rejected rows; those that the tables
    know are found by themselves.  requests: ids of theirs, of which clicks may be here and impressions elsewhere.
    dry_run: change nothing and say what would go.
    drop_refs: remove branches and tags that hold them too.  erase: expire all snapshots but the newest at once, so that
    the users are gone from the disk; readers of older snapshots fail. Files that a killed writer left go with
    `sweep_orphans`.  progress: called with the name of each table before its turn.
    engine: where files are rewritten: "inline", "processes:N"; see `reqdedup.distributed`.
    One commit per table; a run that was killed is finished by the same call. Raises ValueError for ids that are no
    int64, tables of no such kind, and a feature table by position without its main table or, with erase, a main table
    without those; ConflictError if other writers replaced the same files again and again.
    """
    users, keys = user_array(user_ids), [keys] if isinstance(keys, str) else list(keys)
    tables = [tables] if isinstance(tables, Table) else list(tables)
    check_deletion(tables, users, keys, erase=erase)
    reports = []
    words = {*map(str, users.tolist()), *keys}
    shown = np.union1d(requests_shown(tables, users), np.fromiter(requests, np.int64))
    # Rejected rows first: only as long as a table has the users it also tells their keys.
    for table in sorted(tables, key=_turn):
        if progress is not None:
            progress(".".join(table.name()))
        table.refresh()
        if is_rejects_table(table):
            words |= user_keys(tables, users)
            reports.append(_delete_rejected(table, users, words, drop_refs=drop_refs, dry_run=dry_run))
            continue
        if is_served_table(table):
            reports.append(_delete_served(table, users, shown, drop_refs=drop_refs, dry_run=dry_run))
            continue
        if dry_run:
            counts, snapshot_id = count_rows(table, users), None
        elif is_feature_table(table) and is_by_position(table):
            counts, snapshot_id = _follow_main(table, users, engine)
        else:
            counts, snapshot_id = _delete_from(table, users, engine)
        reports.append(_report(table, users, counts, snapshot_id, drop_refs=drop_refs, dry_run=dry_run))
    if erase and not dry_run:  # after all of them, since features by position read old snapshots of their main table
        for table in tables:
            expire_snapshots(table, older_than=timedelta(0))
        left = {".".join(table.name()): _old_snapshots(table.refresh()) for table in tables}
        reports = [replace(report, snapshots=left[report.table]) for report in reports]
    return reports


def _turn(table: Table) -> tuple[bool, bool, bool]:
    return not is_rejects_table(table), is_feature_table(table), is_served_table(table) and comes_last(table)


def check_deletion(tables: list[Table], users: np.ndarray, keys: Sequence[str], *, erase: bool) -> None:
    """Raise whatever would end the deletion, of any table, before the first of them is touched."""
    if not all(isinstance(key, str) and key.strip() for key in keys):
        raise ValueError(f"keys: ids of at least one character required, found {keys!r}")
    names = {".".join(table.name()) for table in tables}
    for table in tables:
        if is_feature_table(table):
            main = table.properties.get(MAIN_TABLE_PROPERTY, "")
            if is_by_position(table) and main not in names:
                raise ValueError(
                    f"{'.'.join(table.name())}: its main table {main} among the tables required, since its rows follow "
                    "the requests there, found only the feature table; name both"
                )
        elif not (is_rejects_table(table) or is_served_table(table)):
            table_layout(table)
            sides = [side for side in feature_tables_of(table) if is_by_position(side)] if erase else []
            left_out = sorted({".".join(side.name()) for side in sides} - names)
            if left_out:
                raise ValueError(
                    f"{'.'.join(table.name())}: its feature tables by position among the tables required with erase, "
                    f"since old snapshots tell whose their values are, not found: {', '.join(left_out)}; name them too"
                )
    for table in tables:
        if is_rejects_table(table) or is_served_table(table):
            continue
        table.refresh()
        check_one_spec(table, "a deletion")
        rewrite_schema(table)
        if is_feature_table(table) and is_by_position(table):
            count_by_position(table, users, RowCounts())
        else:
            files_with(table, users)


def _delete_from(table: Table, users: np.ndarray, engine: str | Engine | None) -> tuple[RowCounts, int | None]:
    name = ".".join(table.name())
    counts, snapshot_id = RowCounts(), None
    for attempt in range(ATTEMPTS):
        files = files_with(table, users)
        if not files:
            return counts, snapshot_id
        landed = _rewrite(table, files, users, engine)
        for part, written in zip(landed.parts, landed.written):
            for requests in written.note:
                counts.add(requests)
            counts.files, counts.rewritten = counts.files + len(part.removed), counts.rewritten + len(written.files)
            counts.bytes += sum(file.file_size_in_bytes for file, _ in written.files)
            counts.old_bytes += part.num_bytes
        snapshot_id = landed.snapshot_id or snapshot_id
        if landed.stale:
            # two that rewrite one bucket again and again must get out of step
            CommitRetries.of(table.properties).wait(attempt)
            table.refresh()
    raise ConflictError(
        f"{name}: files left alone by others required while they are rewritten, found them replaced, or the users "
        f"appended again, {ATTEMPTS} times; run it again when the other writer is done"
    )


@dataclass(frozen=True, kw_only=True)
class DeleteTask:
    """Files of one partition to write again. num_rows, num_bytes: in them.  users: of the partition, rising."""

    partition: int | None
    paths: tuple[str, ...]
    num_rows: int
    users: np.ndarray
    num_bytes: int = 0
    write_id: str = ""

    @property
    def name(self) -> str:
        return "all files" if self.partition is None else f"partition {self.partition}"


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """What the tasks of a deletion share. schema: of the files, before and after.  renew: see `run_alike`."""

    table: PortableTable
    schema: EngagementSchema
    updates: tuple[TableUpdate, ...] = ()
    renew: bool = False

    def run(self, task: DeleteTask) -> Written:
        """Write the files again without the users; its note: keys of the requests that went, a row each."""
        table, schema, layout = self.table.table, self.schema, table_layout(self.table.table)
        kept, kept_requests, gone = RunningChecksum(), 0, []
        with StagedFiles(table, schema, self.updates, write_id=task.write_id) as files:
            for path in task.paths:
                source = table_files(table, [path], schema)
                for batch in source.stream(source.row_groups()):
                    keep = ~np.isin(batch.column(USER_ID).to_numpy(), task.users)
                    requests = request_keys(batch)
                    gone.append(requests[~keep])
                    if not keep.any():
                        continue
                    (rows,) = kept.through([take_rows(batch, keep)])
                    kept_requests += len(run_starts(list(requests[keep].T)))
                    fat = in_form(rows, layout, schema)
                    one_group = layout in (Layout.SORTED, Layout.SHUFFLED)
                    files.write(task.partition, fat, target_bytes=0 if one_group else 2**63)
                files.close_file()
            check_same_rows(table, schema, kept, files.data_files)
            left = ContentChecksum(task.num_rows - sum(map(len, gone)), kept.so_far.checksum)
            return files.hand_over(left, num_requests=kept_requests if layout.is_bucketed else None, note=gone)


def _rewrite(table: Table, old: list[LiveFile], users: np.ndarray, engine: str | Engine | None) -> Landed:
    """Write these files again without the users, in one commit."""
    schema, num_buckets = rewrite_schema(table), table_buckets(table)
    parts = []
    for partition, files in by_partition(old).items():
        own = users if num_buckets is None else users[buckets_of(users, num_buckets) == partition]
        paths, num_rows = tuple(file.path for file in files), sum(file.num_rows for file in files)
        replaced = tuple(file.data_file for file in files)
        task = DeleteTask(partition=partition, paths=paths, num_rows=num_rows, users=own)
        parts.append(Part(task, replaced))
    work = Deletion(table=PortableTable(table), schema=schema)
    chosen = engine_for(engine, work, num_tasks=len(parts), num_bytes=sum(part.num_bytes for part in parts))
    lead = None if is_decided(table, schema) else lead_of([part.task.num_rows for part in parts])
    of_main = made_from(table)
    commits = GroupCommits(table, schema, properties=lambda together: {OPERATION: "delete", **of_main})
    (landed,) = commits.run(work, groups_of(parts, together=True), chosen, lead=lead)
    return landed


def _follow_main(table: Table, users: np.ndarray, engine: str | Engine | None) -> tuple[RowCounts, int | None]:
    """A table by position loses the users by being aligned anew with its main table, which has lost them already."""
    counts = RowCounts()
    buckets = count_by_position(table, users, counts)
    if not counts.rows:
        return counts, None
    main = table.catalog.load_table(table.properties[MAIN_TABLE_PROPERTY])
    aligned = realign(main, table, buckets=buckets, engine=engine)
    counts.rewritten, counts.bytes = aligned.files, aligned.bytes
    return counts, aligned.snapshot_id


def _delete_rejected(
    table: Table, users: np.ndarray, words: Collection[str], *, drop_refs: bool, dry_run: bool
) -> DeletionReport:
    done = Rewritten(rows=count_rejected(table, users, words)) if dry_run else delete_rejected(table, users, words)
    current = table.refresh().current_snapshot()
    refs = {name: ref.snapshot_id for name, ref in table.metadata.refs.items() if name != MAIN}
    held_by = [
        name
        for name, snapshot_id in refs.items()
        if (current is None or snapshot_id != current.snapshot_id) and count_rejected(table, users, words, snapshot_id)
    ]
    if dry_run and done.rows:  # all of it is written again
        done = replace(done, files=len(data_files(table)))
    return _of_rewritten(table, done, tuple(sorted(held_by)), drop_refs=drop_refs, dry_run=dry_run)


def _delete_served(
    table: Table, users: np.ndarray, requests: np.ndarray, *, drop_refs: bool, dry_run: bool
) -> DeletionReport:
    done = count_served(table, users, requests) if dry_run else delete_served(table, users, requests)
    held_by = refs_with_served(table.refresh(), users, requests)
    return _of_rewritten(table, done, held_by, drop_refs=drop_refs, dry_run=dry_run)


def _of_rewritten(
    table: Table, done: Rewritten, held_by: tuple[str, ...], *, drop_refs: bool, dry_run: bool
) -> DeletionReport:
    return DeletionReport(
        table=".".join(table.name()),
        rows=done.rows,
        requests=0,
        files=done.files,
        rewritten=done.rewritten,
        untouched=len(data_files(table)) - (done.files if dry_run else done.rewritten),
        bytes=done.bytes,
        old_bytes=done.old_bytes,
        held_by=_drop_refs(table, held_by, drop_refs and not dry_run),
        snapshots=_old_snapshots(table),
        snapshot_id=done.snapshot_id,
        dry_run=dry_run,
    )


def _report(
    table: Table, users: np.ndarray, counts: RowCounts, snapshot_id: int | None, *, drop_refs: bool, dry_run: bool
) -> DeletionReport:
    table.refresh()
    held_by = _drop_refs(table, holding_refs(table, users), drop_refs and not dry_run)
    return DeletionReport(
        table=".".join(table.name()),
        rows=counts.rows,
        requests=counts.num_requests,
        files=counts.files,
        rewritten=counts.rewritten,
        bytes=counts.bytes,
        old_bytes=counts.old_bytes,
        untouched=len(live_files(table)) - (counts.files if dry_run else counts.rewritten),
        held_by=held_by,
        snapshots=_old_snapshots(table),
        snapshot_id=snapshot_id,
        dry_run=dry_run,
    )


def _drop_refs(table: Table, held_by: tuple[str, ...], is_wanted: bool) -> tuple[str, ...]:
    """Remove these branches and tags if that is wanted; those that are left."""
    if not (is_wanted and held_by):
        return held_by
    removals = [remove_ref(ref) for ref in held_by]
    commit_refs(table, removals, expected={ref: table.metadata.refs[ref].snapshot_id for ref in held_by})
    return ()


def _old_snapshots(table: Table) -> int:
    return len(table.metadata.snapshots) - len({ref.snapshot_id for ref in table.metadata.refs.values()})


def user_array(user_ids: int | Iterable[int] | np.ndarray | pa.Array) -> np.ndarray:
    """Rising int64 ids, each once. Raises ValueError for others and for none."""
    values = [user_ids] if isinstance(user_ids, (int, np.integer)) else user_ids
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        values = values.to_pylist()
    try:
        users = np.array([_int64(value) for value in values], np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"user_ids: int64 ids required, found {error}; string ids are hashed first") from None
    if len(users) == 0:
        raise ValueError("user_ids: at least one id required, found none")
    return np.unique(users)


def _int64(value: object) -> int:
    if isinstance(value, (bool, str, bytes)) or not isinstance(value, (int, np.integer)):
        raise TypeError(repr(value))
    if not -(2**63) <= value < 2**63:
        raise OverflowError(repr(value))
    return int(value)
