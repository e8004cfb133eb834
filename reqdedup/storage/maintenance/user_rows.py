"""Where rows of given users are: files, keys, counts, and the branches and tags that hold them. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.schema import REQUEST_ID, USER_ID, EngagementSchema, Level
from reqdedup.storage.features.backfill import MAIN_REQUESTS, MAIN_SNAPSHOT, MAIN_TABLE
from reqdedup.storage.iceberg.changes import added_columns, check_no_columns_added
from reqdedup.storage.iceberg.evolve import MAIN
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets, table_schema
from reqdedup.storage.maintenance.live import LiveFile, live_files
from reqdedup.storage.read.feature_positions import feature_side
from reqdedup.storage.read.feature_table import (
    BUCKET_COLUMN,
    as_engagement_schema,
    feature_schema,
    is_by_position,
    is_feature_table,
    stored_schema,
)
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.write.rejects import is_rejects_table

USER_KEY = "user_key"
"""Column of the original string that a user_id is the hash of, if there is one."""


@dataclass
class RowCounts:
    """Rows of the users and the files that hold them; of a deletion also the files in their place."""

    rows: int = 0
    files: int = 0
    rewritten: int = 0
    bytes: int = 0
    old_bytes: int = 0
    requests: list[np.ndarray] = field(default_factory=list)
    """[N, 2] user_id and request_id of what was deleted; of a shuffled table a request comes again and again."""

    def add(self, requests: np.ndarray) -> None:
        """Count rows that go; requests: [N, 2] their keys."""
        self.rows += len(requests)
        self.requests.append(requests)

    @property
    def num_requests(self) -> int:
        return len(np.unique(np.concatenate(self.requests), axis=0)) if self.requests else 0


def files_with(table: Table, users: np.ndarray, snapshot_id: int | None = None) -> list[LiveFile]:
    """The data files of a snapshot that hold rows of these users; ids are read only if bucket and bounds allow them."""
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
        source = file_source(table, [file.path], snapshot_id)
        groups = source.row_groups(users)
        if any(np.isin(ids.column(0).to_numpy(), users).any() for ids in source.stream(groups, [USER_ID])):
            holding.append(file)
    return holding


def user_keys(tables: Iterable[Table], users: np.ndarray) -> set[str]:
    """The original ids of these users, as far as the tables have them."""
    found: set[str] = set()
    for table in tables:
        if is_rejects_table(table) or is_feature_table(table) or USER_KEY not in table_schema(table).names:
            continue
        for file in files_with(table, users):
            source = file_source(table, [file.path], None)
            for batch in source.stream(source.row_groups(users), [USER_ID, USER_KEY]):
                held = np.isin(batch.column(USER_ID).to_numpy(), users)
                found |= {key for key in batch.column(USER_KEY).filter(pa.array(held)).unique().to_pylist() if key}
    return found


def count_rows(table: Table, users: np.ndarray) -> RowCounts:
    """What a deletion would find, without changing anything."""
    counts = RowCounts()
    if is_feature_table(table) and is_by_position(table):
        count_by_position(table, users, counts)
        return counts
    for file in files_with(table, users):
        source = file_source(table, [file.path], None)
        counts.files, counts.old_bytes = counts.files + 1, counts.old_bytes + file.num_bytes
        for batch in source.stream(source.row_groups(users), [USER_ID, REQUEST_ID]):
            requests = request_keys(batch)
            counts.add(requests[np.isin(requests[:, 0], users)])
    return counts


def count_by_position(table: Table, users: np.ndarray, counts: RowCounts) -> list[int]:
    """Count the rows of the users, and the files of their buckets; those buckets."""
    side, _ = feature_side(table)
    for batch in side.stream(0, 1, [USER_ID, REQUEST_ID], users):
        counts.add(request_keys(batch))
    buckets = sorted(set(buckets_of(users, side.num_buckets).tolist()))
    if counts.rows:
        old = [file for file in live_files(table) if file.partition in buckets]
        counts.files, counts.old_bytes = len(old), sum(file.num_bytes for file in old)
    return buckets


def holding_refs(table: Table, users: np.ndarray) -> tuple[str, ...]:
    """Branches and tags but main whose snapshots hold rows of these users."""
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


def rows_schema(table: Table, snapshot_id: int | None) -> EngagementSchema:
    """Columns of an engagement table or of a feature table."""
    if is_feature_table(table):
        return as_engagement_schema(feature_schema(table, snapshot_id))
    return table_schema(table, snapshot_id)


def rewrite_schema(table: Table) -> EngagementSchema:
    """Columns that a rewrite of the table's files keeps: its own, and those that another engine added.

    Raises ValueError, naming them, for columns that no column of ours can hold, and own ones that
    were renamed or dropped.
    """
    own = rows_schema(table, None)
    by_position = is_feature_table(table) and is_by_position(table)
    if by_position:
        own = as_engagement_schema(stored_schema(table, feature_schema(table)))
        check_no_columns_added(table, [*own.names, BUCKET_COLUMN], "write it again")
    names = table.schema().column_names
    gone = [column.name for column in own.columns if column.name not in names]
    if gone:
        raise ValueError(
            f"{'.'.join(table.name())}: columns {', '.join(gone)} required, found {', '.join(names)}; another engine "
            "renamed or dropped them, and nothing was written: give them their names back there"
            ", or add them again (their values are null then)"
        )
    if by_position:
        return own
    added = added_columns(table, own.names, Level.REQUEST if is_feature_table(table) else Level.ITEM)
    return replace(own, columns=(*own.columns, *added))


def file_source(table: Table, paths: list[str], snapshot_id: int | None) -> FileSource:
    """Some files of a snapshot, with the columns that the table had there."""
    return table_files(table, paths, rows_schema(table, snapshot_id), snapshot_id)


def made_from(table: Table) -> dict[str, str]:
    """What the newest snapshot of a feature table says about its main table; a rewrite says the same."""
    snapshot = table.current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return {}
    said = {name: snapshot.summary.get(name) for name in (MAIN_TABLE, MAIN_SNAPSHOT, MAIN_REQUESTS)}
    return {name: value for name, value in said.items() if value is not None}


def request_keys(rows: pa.RecordBatch) -> np.ndarray:
    """user_id and request_id of each row, [N, 2]."""
    return np.stack([rows.column(name).to_numpy() for name in (USER_ID, REQUEST_ID)], axis=1)
