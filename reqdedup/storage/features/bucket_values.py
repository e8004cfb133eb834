"""One bucket of a feature table, written: the task of a backfill. It reads the main table, and what is there already.

Columns that are not computed, and users that are not asked for, keep their values: a merge of sorted streams, one batch
of each in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pyiceberg.table.update import TableUpdate

from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.dedup.streams import REQUEST_KEY, key_columns
from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.storage.features.values import Compute, choose, compute_values, missing_values, row_groups
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.join.merge import LEFT, JoinCounts, MergeJoin
from reqdedup.storage.read.buckets import SortedSource, SortedTable
from reqdedup.storage.read.feature_positions import Positions, first_rows, key_hash
from reqdedup.storage.read.feature_table import FeatureSchema
from reqdedup.storage.tasks import BucketTask

_NEW, _OLD, _IS_NEW = "new:", "old:", Column(name="new", dtype="bool", level=Level.REQUEST, nullable=True)


@dataclass(frozen=True, kw_only=True)
class BucketValues:
    """What the tasks of a backfill share.

    table: of the features.  stored: columns of its files.  schema: its columns, those that are computed among them.
    updates, renew: see `run_alike`.
    main, keys: the main table twice, as each plans for one set of users.  old: the features of now.
    main_snapshot: that `main` reads, if the features are to be stored by position; else None.
    compute: None if values are only carried over.  inputs: columns of the main table for it.
    columns: that it computes.  users: for whom, None for all.
    """

    table: PortableTable
    stored: EngagementSchema
    schema: FeatureSchema
    updates: tuple[TableUpdate, ...]
    main: SortedTable
    keys: SortedTable
    old: SortedSource
    old_schema: FeatureSchema
    main_snapshot: int | None
    compute: Compute | None
    inputs: Sequence[str]
    columns: tuple[Column, ...]
    users: np.ndarray | None
    renew: bool = False

    def run(self, task: BucketTask) -> Written:
        """Compute and write the bucket; its note: for how many requests."""
        num_computed: list[int] = []
        num_requests, hashes = 0, []
        with StagedFiles(self.table.table, self.stored, self.updates, write_id=task.write_id) as files:
            for rows in row_groups(self._rows(task.bucket, num_computed)):
                written = pa.Table.from_batches([rows.select(list(self.stored.names))])
                num_requests += files.write(task.bucket, written, target_bytes=2**63)
                if self.main_snapshot is not None:
                    hashes.append(key_hash(*key_columns(rows, REQUEST_KEY)))
                    files.describe(Positions(self.main_snapshot, tuple(hashes)).to_footer())
            return files.hand_over(
                ContentChecksum(num_requests, 0),  # of values that are made here, there is nothing to compare with
                num_requests=num_requests if self.main_snapshot is None else None,
                note=sum(num_computed),
            )

    def _rows(self, bucket: int, num_computed: list[int]) -> Iterator[pa.RecordBatch]:
        """The bucket's rows of the feature table: every request of the main table once."""
        computed = self._computed(bucket, num_computed)
        kept = self.schema.features if self.users is not None or self.compute is None else self._kept
        kept = tuple(column for column in kept if column.name in self.old_schema.names)
        if self.users is None and self.compute is not None:
            rows = computed
        else:
            rows = first_rows(self.keys.stream(bucket, self.keys.num_buckets, list(REQUEST_KEY)), self.keys.name)
            if self.compute is not None:
                new = (_renamed(batch, _NEW, is_new=True) for batch in computed)
                rows = _left_join(rows, new, [_nullable(column, _NEW) for column in self.columns] + [_IS_NEW])
        if kept:
            names = [*REQUEST_KEY, *(column.name for column in kept)]
            earlier = (_renamed(batch, _OLD) for batch in self.old.stream(bucket, self.old.num_buckets, names))
            rows = _left_join(rows, earlier, [_nullable(column, _OLD) for column in kept], self.old.name)
        for batch in rows:
            arrays = [batch.column(name) for name in REQUEST_KEY]
            arrays += [self._value(batch, column) for column in self.schema.features]
            yield pa.RecordBatch.from_arrays(arrays, names=[*REQUEST_KEY, *(c.name for c in self.schema.features)])

    @property
    def _kept(self) -> tuple[Column, ...]:
        return tuple(column for column in self.schema.features if column not in self.columns)

    def _computed(self, bucket: int, num_computed: list[int]) -> Iterator[pa.RecordBatch]:
        if self.compute is None:
            return
        batches = self.main.stream(bucket, self.main.num_buckets, self.inputs, self.users)
        for batch in compute_values(first_rows(batches, self.main.name), self.compute, self.columns):
            num_computed.append(batch.num_rows)
            yield batch

    def _value(self, batch: pa.RecordBatch, column: Column) -> pa.Array:
        """The column's value for each request: the new one, else the earlier one, else none."""
        names = batch.schema.names
        if column.name in names:
            return batch.column(column.name)
        old, new = _OLD + column.name, _NEW + column.name
        array = batch.column(old) if old in names else missing_values(column, batch.num_rows)
        if new in names:
            is_new = batch.column(_IS_NEW.name).fill_null(False).to_numpy(zero_copy_only=False)
            array = choose(is_new, batch.column(new), array)
        if array.null_count and not column.nullable:
            row = array.is_null().index(True).as_py()
            user, request = (batch.column(name)[row].as_py() for name in REQUEST_KEY)
            raise ValueError(
                f"feature {column.name}: a value for every request required, found none for request {request} of user "
                f"{user}; compute it for all users first, or declare the column nullable"
            )
        return array


def _left_join(
    left: Iterator[pa.RecordBatch], right: Iterator[pa.RecordBatch], columns: Sequence[Column], name: str = "features"
) -> Iterator[pa.RecordBatch]:
    join = MergeJoin(on=REQUEST_KEY, how=LEFT, right_columns=tuple(columns), left_name="requests", right_name=name)
    return join.run(left, right, JoinCounts())


def _nullable(column: Column, prefix: str) -> Column:
    return replace(column, name=prefix + column.name, nullable=not column.is_blob)


def _renamed(batch: pa.RecordBatch, prefix: str, *, is_new: bool = False) -> pa.RecordBatch:
    """The batch with `prefix` before the names of its features; with a column that is True on every row."""
    names = [name if name in REQUEST_KEY else prefix + name for name in batch.schema.names]
    arrays = list(batch.columns)
    if is_new:
        names, arrays = [*names, _IS_NEW.name], [*arrays, pa.array(np.ones(batch.num_rows, bool))]
    return pa.RecordBatch.from_arrays(arrays, names=names)
