"""Deleting users: their rows leave every table, and only the files that hold them are written again.

    bucket of the user -> files whose user range covers it -> row groups -> the ids themselves: what is left holds the user

A file keeps its order and form; rows go as whole requests, so nothing has to be sorted again. Files of the bucketed layouts
are found by bucket, those of ARRIVAL and SHUFFLED by reading the ids alone. A feature table by position follows its main
table. Old snapshots keep the rows until they expire, branches and tags as long as they are there: the report names them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import RemoveSnapshotRefUpdate

from reqdedup.schema import REQUEST_ID, USER_ID, EngagementSchema
from reqdedup.storage.commit import MAX_WAIT_S, ConflictError, StagedFiles
from reqdedup.storage.content import RunningChecksum, content_checksum
from reqdedup.storage.evolve import MAIN, commit_refs
from reqdedup.storage.feature_positions import feature_side
from reqdedup.storage.feature_table import (
    MAIN_TABLE_PROPERTY,
    as_engagement_schema,
    feature_schema,
    is_by_position,
    is_feature_table,
)
from reqdedup.storage.features import realign
from reqdedup.storage.keys import run_starts
from reqdedup.storage.layout import Layout, buckets_of, table_buckets, table_layout, table_schema
from reqdedup.storage.maintenance.expire import expire_snapshots
from reqdedup.storage.maintenance.live import LiveFile, live_files
from reqdedup.storage.reader import FileSource
from reqdedup.storage.source import take_rows
from reqdedup.storage.writer import fat_rows

ATTEMPTS = 10
"""Of one table whose files another writer replaced, or added the user to, while they were rewritten."""


@dataclass(frozen=True, kw_only=True)
class DeletionReport:
    """What a deletion did to one table.

    rows, requests: deleted.  files: that held the users and are no longer in the table.  rewritten: the files in their
    place.  bytes, old_bytes: of both.  untouched: files that were left as they are.
    held_by: branches and tags that still hold the users; drop them, they cannot be rewritten.
    snapshots: that still hold them and go with `expire_snapshots`.  snapshot_id: of the commit, None where there was none.
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


def delete_user(
    tables: Table | Sequence[Table],
    user_ids: int | Iterable[int] | np.ndarray | pa.Array,
    *,
    drop_refs: bool = False,
    erase: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[DeletionReport]:
    """Delete all rows of these users from engagement tables of any layout and from feature tables.

    drop_refs: remove branches and tags that hold them too.  erase: expire all snapshots but the newest at once, so that
    the users are gone from the disk; readers of older snapshots fail. Files that a killed writer left go with
    `sweep_orphans`.  progress: called with the name of each table before its turn.
    One commit per table; a run that was killed is finished by the same call. Raises ValueError for ids that are no
    int64, tables of no such kind, and a feature table by position without its main table; ConflictError where other
    writers replaced the same files again and again.
    """
    users = _user_array(user_ids)
    tables = [tables] if isinstance(tables, Table) else list(tables)
    names = {".".join(table.name()) for table in tables}
    for table in tables:
        if is_feature_table(table):
            main = table.properties.get(MAIN_TABLE_PROPERTY, "")
            if is_by_position(table) and main not in names:
                raise ValueError(
                    f"{'.'.join(table.name())}: its main table {main} among the tables required, since its rows follow the "
                    "requests there, found only the feature table; name both"
                )
        else:
            table_layout(table)
    reports = []
    for table in sorted(tables, key=is_feature_table):
        if progress is not None:
            progress(".".join(table.name()))
        table.refresh()
        if is_feature_table(table) and is_by_position(table):
            report = _follow_main(table, users, drop_refs)
        else:
            report = _delete_from(table, users, drop_refs)
        reports.append(report)
    if erase:  # after all of them, since features by position read old snapshots of their main table
        for table in tables:
            expire_snapshots(table, older_than=timedelta(0))
    return reports


def files_with(table: Table, users: np.ndarray, snapshot_id: int | None = None) -> list[LiveFile]:
    """The data files of a snapshot that hold rows of these users; ids are read only where bucket and bounds allow them."""
    num_buckets = table_buckets(table)
    buckets = None if num_buckets is None else set(buckets_of(users, num_buckets).tolist())
    holding = []
    for file in live_files(table, snapshot_id):
        of_spec = file.data_file.spec_id == table.metadata.default_spec_id
        if buckets is not None and of_spec and file.partition not in buckets:
            continue
        at = int(np.searchsorted(users, file.users[0]))
        if at == len(users) or users[at] > file.users[1]:
            continue
        source = _source(table, [file.path], snapshot_id)
        groups = source.row_groups(users)
        if any(np.isin(ids.column(0).to_numpy(), users).any() for ids in source.stream(groups, [USER_ID])):
            holding.append(file)
    return holding


def _delete_from(table: Table, users: np.ndarray, drop_refs: bool) -> DeletionReport:
    name = ".".join(table.name())
    counts, snapshot_id = _Counts(), None
    for _ in range(ATTEMPTS):
        files = files_with(table, users)
        if not files:
            break
        try:
            snapshot_id = _rewrite(table, files, users, counts) or snapshot_id
        except ConflictError:
            time.sleep(
                random.uniform(0, MAX_WAIT_S)
            )  # two that rewrite one bucket again and again must get out of step
            table.refresh()
    else:
        raise ConflictError(
            f"{name}: files left alone by others required while they are rewritten, found them replaced, or the users appended "
            f"again, {ATTEMPTS} times; run it again when the other writer is done"
        )
    return _report(table, users, counts, snapshot_id, drop_refs)


@dataclass
class _Counts:
    rows: int = 0
    files: int = 0
    rewritten: int = 0
    bytes: int = 0
    old_bytes: int = 0
    requests: list[np.ndarray] = field(default_factory=list)
    """[N, 2] user_id and request_id of what was deleted; of a shuffled table a request comes again and again."""

    @property
    def num_requests(self) -> int:
        return len(np.unique(np.concatenate(self.requests), axis=0)) if self.requests else 0


def _rewrite(table: Table, old: list[LiveFile], users: np.ndarray, counts: _Counts) -> int | None:
    """Write these files again without the users, in one commit."""
    schema, layout = _schema(table, None), table_layout(table)
    kept, kept_requests, gone = RunningChecksum(), 0, []
    with StagedFiles(table, schema) as files:
        for file in old:
            source = _source(table, [file.path], None)
            for batch in source.stream(source.row_groups()):
                keep = ~np.isin(batch.column(USER_ID).to_numpy(), users)
                requests = _requests(batch)
                gone.append(requests[~keep])
                if not keep.any():
                    continue
                (rows,) = kept.through([take_rows(batch, keep)])
                kept_requests += len(run_starts(list(requests[keep].T)))
                fat = pa.Table.from_batches([rows]) if layout.has_blobs else fat_rows(rows, schema)
                one_group = layout in (Layout.SORTED, Layout.SHUFFLED)
                files.write(file.partition, fat, target_bytes=0 if one_group else 2**63)
            files.close_file()
        num_requests, gone_rows = kept_requests if layout.is_bucketed else None, sum(map(len, gone))
        files.verify(num_rows=sum(file.num_rows for file in old) - gone_rows, num_requests=num_requests)
        new = files.data_files
        if new and content_checksum(_source(table, [file.file_path for file in new], None)) != kept.so_far:
            raise RuntimeError(
                f"{'.'.join(table.name())}: the rows of all other users unchanged required ({kept.so_far}), found others; nothing "
                "was committed. This is a defect of the reader or the writer: report it"
            )
        snapshot_id = files.commit(
            replace=True,
            removed=[file.data_file for file in old],
            rebase=True,
            properties={"reqdedup.operation": "delete"},
        )
    counts.rows, counts.requests = counts.rows + gone_rows, [*counts.requests, *gone]
    counts.files, counts.rewritten = counts.files + len(old), counts.rewritten + len(new)
    counts.bytes += sum(file.file_size_in_bytes for file in new)
    counts.old_bytes += sum(file.num_bytes for file in old)
    return snapshot_id


def _follow_main(table: Table, users: np.ndarray, drop_refs: bool) -> DeletionReport:
    """A table by position loses the users by being aligned anew with its main table, which has lost them already."""
    side, _ = feature_side(table)
    counts = _Counts()
    for batch in side.stream(0, 1, [USER_ID, REQUEST_ID], users):
        counts.rows, counts.requests = counts.rows + batch.num_rows, [*counts.requests, _requests(batch)]
    snapshot_id = None
    if counts.rows:
        buckets = set(buckets_of(users, side.num_buckets).tolist())
        old = [file for file in live_files(table) if file.partition in buckets]
        main = table.catalog.load_table(table.properties[MAIN_TABLE_PROPERTY])
        aligned = realign(main, table, buckets=sorted(buckets))
        counts.files, counts.old_bytes = len(old), sum(file.num_bytes for file in old)
        counts.rewritten, counts.bytes, snapshot_id = aligned.files, aligned.bytes, aligned.snapshot_id
    return _report(table, users, counts, snapshot_id, drop_refs)


def _report(
    table: Table, users: np.ndarray, counts: _Counts, snapshot_id: int | None, drop_refs: bool
) -> DeletionReport:
    table.refresh()
    held_by = _holding_refs(table, users)
    if drop_refs and held_by:
        removals = [RemoveSnapshotRefUpdate(ref_name=ref) for ref in held_by]  # type: ignore[call-arg]
        commit_refs(table, removals, expected={ref: table.metadata.refs[ref].snapshot_id for ref in held_by})
        held_by = ()
    return DeletionReport(
        table=".".join(table.name()),
        rows=counts.rows,
        requests=counts.num_requests,
        files=counts.files,
        rewritten=counts.rewritten,
        bytes=counts.bytes,
        old_bytes=counts.old_bytes,
        untouched=len(live_files(table)) - counts.rewritten,
        held_by=held_by,
        snapshots=len(table.metadata.snapshots) - len({ref.snapshot_id for ref in table.metadata.refs.values()}),
        snapshot_id=snapshot_id,
    )


def _holding_refs(table: Table, users: np.ndarray) -> tuple[str, ...]:
    by_position = is_feature_table(table) and is_by_position(table)
    current = table.current_snapshot()
    holding = []
    for name, ref in table.metadata.refs.items():
        if name == MAIN or (current is not None and ref.snapshot_id == current.snapshot_id):
            continue
        if by_position:
            side, _ = feature_side(table, snapshot_id=ref.snapshot_id)
            held = any(batch.num_rows for batch in side.stream(0, 1, [USER_ID, REQUEST_ID], users))
        else:
            held = bool(files_with(table, users, ref.snapshot_id))
        if held:
            holding.append(name)
    return tuple(sorted(holding))


def _schema(table: Table, snapshot_id: int | None) -> EngagementSchema:
    if is_feature_table(table):
        return as_engagement_schema(feature_schema(table, snapshot_id))
    return table_schema(table, snapshot_id)


def _source(table: Table, paths: list[str], snapshot_id: int | None) -> FileSource:
    return FileSource(paths, _schema(table, snapshot_id), io=table.io)


def _requests(rows: pa.RecordBatch) -> np.ndarray:
    """user_id and request_id of each row, [N, 2]."""
    return np.stack([rows.column(name).to_numpy() for name in (USER_ID, REQUEST_ID)], axis=1)


def _user_array(user_ids: int | Iterable[int] | np.ndarray | pa.Array) -> np.ndarray:
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
