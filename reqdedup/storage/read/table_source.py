"""The files of one Iceberg snapshot, read through the table's FileIO.

Files come from `scan.plan_files()`, never from a directory listing. What other engines may have done to the table
(delete files, renamed columns, another partitioning) is refused here, before a row is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from reqdedup.schema import ITEM_ID, KEYS, REQUEST_TS, EngagementSchema
from reqdedup.storage.iceberg.changes import check_no_deletes
from reqdedup.storage.iceberg.claims import KeyOrder, user_bounds
from reqdedup.storage.iceberg.layout import (
    SCHEMA_PROPERTY,
    Layout,
    table_buckets,
    table_layout,
    table_schema,
)
from reqdedup.storage.iceberg.manifests import scan_tasks, stored_bytes
from reqdedup.storage.iceberg.vocabulary import Vocabulary
from reqdedup.storage.read.reader import FileSource


class TableSource(FileSource):
    """One snapshot of an engagement table as deduplicated batches.

    requests_whole: the rows of every request follow one another in `batches`, as far as the manifests tell; not so if
        appends may have brought rows of one user in several files.
    columns: what to read; the keys and request_ts always come along in `schema`. None means all.
    snapshot_id: which snapshot; None means the newest of the table as it was loaded
        (`table.refresh()` sees later ones).
    Raises ValueError for a table that carries no engagement schema, a snapshot that is not there (any more), columns
    that another engine renamed or dropped, and delete files, which a reader of whole row groups cannot apply.
    """

    def __init__(self, table: Table, *, columns: Sequence[str] | None = None, snapshot_id: int | None = None) -> None:
        name = ".".join(table.name())
        if snapshot_id is not None and table.snapshot_by_id(snapshot_id) is None:
            raise ValueError(
                f"{name}: snapshot {snapshot_id} required, found none of that id among "
                f"{len(table.metadata.snapshots)}: expired, of another table, or newer than this Table object; choose "
                "one of table.snapshots(), or refresh() it"
            )
        schema = table_schema(table, snapshot_id)
        known_columns = schema.names
        if columns is not None:
            schema = schema.select({*columns, *KEYS, REQUEST_TS})
        fields = column_ids(table, snapshot_id)
        gone = [column for column in schema.names if column not in fields] if snapshot_id is None else []
        if gone:
            raise ValueError(
                f"{name}: columns {', '.join(gone)} required by its property {SCHEMA_PROPERTY}, found "
                f"{', '.join(fields)}; another engine renamed or dropped them: give them their names back there, add "
                "them again (their values are null then), or read the others with columns=[...]"
            )
        self.table, self.layout, self.num_bytes = table, table_layout(table), stored_bytes(table)
        self.snapshot_id = snapshot_id
        if snapshot_id is None and table.current_snapshot() is not None:
            self.snapshot_id = table.current_snapshot().snapshot_id  # type: ignore[union-attr]
        tasks = scan_tasks(table, self.snapshot_id)
        check_no_deletes(table, tasks)
        spec_ids = {task.file.spec_id for task in tasks} or {table.spec().spec_id}  # of an old snapshot maybe another
        if len(spec_ids) > 1:
            raise ValueError(
                f"{name}: files of one partition spec required, found {len(spec_ids)} specs in snapshot "
                f"{self.snapshot_id}; another engine changed the partitioning without rewriting: compact the table "
                "(compact(table), `reqdedup compact`)"
            )
        num_buckets = table_buckets(table, spec_ids.pop())
        placed = [(_bucket(task.file.partition, num_buckets), task.file.file_path) for task in tasks]
        self.requests_whole = self.layout.is_bucketed and num_buckets is not None
        if num_buckets is not None:  # in bucket order, and inside a bucket in the order of the keys
            order = KeyOrder(table, self.snapshot_id)
            users = {task.file.file_path: user_bounds(table, task.file) for task in tasks}
            placed.sort(key=lambda item: (item[0], users[item[1]], item[1]))
            apart = all(a[0] != b[0] or users[a[1]][1] < users[b[1]][0] for a, b in pairwise(placed))
            self.requests_whole &= apart and all(order.is_ours_and_sorted(task.file) for task in tasks)
        super().__init__(
            [path for _, path in placed],
            schema,
            io=table.io,
            buckets=[bucket for bucket, _ in placed],
            num_buckets=num_buckets,
            merge_pieces=self.layout is not Layout.SHUFFLED,
            known_columns=known_columns,
            field_ids=fields,
            known_fields=known_fields(table),
        )

    def files(self) -> FileSource:
        """The same rows from the snapshot's files alone, without table and catalog: another process can open them."""
        return FileSource(
            self._paths,
            self._schema,
            io=self._io,
            buckets=[self._bucket_of_path[path] for path in self._paths],
            num_buckets=self._num_buckets,
            **{**self.reading(), "item_files": self.vocabulary.files() if self.vocabulary is not None else []},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled it is `files()`: another process has no catalog."""
        return _as_it_is, (self.files(),)

    def item_keys(self, item_id: np.ndarray) -> np.ndarray | None:
        return None if self.vocabulary is None else self.vocabulary.keys(item_id)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Of the items' ids, if they are dense."""
        name = self.schema[ITEM_ID].vocabulary
        return Vocabulary(self.table.catalog, name) if name else None


def _as_it_is(source: FileSource) -> FileSource:
    return source


def column_ids(table: Table, snapshot_id: int | None = None) -> dict[str, int]:
    """Iceberg's field id of each column, at a snapshot or now."""
    snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
    schema = table.schema()
    if snapshot is not None and snapshot.schema_id is not None:
        schema = table.schemas().get(snapshot.schema_id, schema)
    return {field.name: field.field_id for field in schema.fields}


def table_files(
    table: Table,
    paths: Iterable[str],
    schema: EngagementSchema,
    snapshot_id: int | None = None,
    *,
    buckets: Sequence[int | None] | None = None,
    num_buckets: int | None = None,
) -> FileSource:
    """Some of a table's data files, in the order of the paths; `schema` is of all its columns."""
    return FileSource(
        paths,
        schema,
        io=table.io,
        buckets=buckets,
        num_buckets=num_buckets,
        known_columns=schema.names,
        field_ids=column_ids(table, snapshot_id),
        known_fields=known_fields(table),
    )


def known_fields(table: Table) -> set[str]:
    """ "id name" of every column that the table has had."""
    return {f"{field.field_id} {field.name}" for schema in table.schemas().values() for field in schema.fields}


def _bucket(partition: Record, num_buckets: int | None) -> int | None:
    return partition[0] if num_buckets is not None else None
