"""Backfill of request features: computed once per request, written beside the main table, readable at once.

    main table, bucket by bucket -> first row of every request -> compute -> side table, same buckets and order

The main table is read, never written. With `users` only their buckets are written again: their requests get the new
value, the others of these buckets keep theirs. Columns that are not computed keep their values too, and a column that
the table does not have yet is added. All of it is a merge of sorted streams, one batch of each in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import SetPropertiesUpdate, TableUpdate

from reqdedup.dedup.streams import REQUEST_KEY, key_columns
from reqdedup.schema import Column, Level
from reqdedup.storage.features.values import (
    Compute,
    choose,
    compute_values,
    input_columns,
    missing_values,
    row_groups,
)
from reqdedup.storage.iceberg.changes import check_no_columns_added, check_one_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.evolve import MAIN, add_columns, ref_snapshot
from reqdedup.storage.iceberg.form import preview
from reqdedup.storage.iceberg.layout import Layout, buckets_of
from reqdedup.storage.iceberg.same_requests import same_requests
from reqdedup.storage.join.merge import LEFT, JoinCounts, MergeJoin
from reqdedup.storage.read.buckets import SortedSource, SortedTable
from reqdedup.storage.read.feature_positions import Positions, feature_side, first_rows, key_hash
from reqdedup.storage.read.feature_table import (
    BUCKET_COLUMN,
    FEATURES_PROPERTY,
    FeatureSchema,
    as_engagement_schema,
    check_features,
    feature_buckets,
    feature_files,
    feature_properties,
    feature_schema,
    features_json,
    is_by_position,
    stored_schema,
)
from reqdedup.storage.read.table_source import TableSource

MAIN_TABLE, MAIN_SNAPSHOT, BUCKETS = "reqdedup.main-table", "reqdedup.main-snapshot", "reqdedup.buckets"
"""Snapshot properties: what the features were computed from, and the buckets that were written (or "all")."""

MAIN_REQUESTS = "reqdedup.main-requests"
"""Snapshot property: the first snapshot of the main table that had these requests, if that can be told."""

_NEW, _OLD, _IS_NEW = "new:", "old:", Column(name="new", dtype="bool", level=Level.REQUEST, nullable=True)


@dataclass(frozen=True, kw_only=True)
class FeatureReport:
    """What a backfill wrote.

    requests: in the files, one value of each feature for each.  computed: of these by this backfill; the others kept
    their value.  buckets, files: written.
    bytes: of these files, keys, footers and all.
    minimum_bytes: of the feature values alone, in the same codec: what any store would have to write.
    key_bytes: of user_id and request_id.  snapshot_id: of the commit; None if there was nothing to commit.
    """

    requests: int
    computed: int
    buckets: int
    files: int
    bytes: int
    minimum_bytes: int
    key_bytes: int
    seconds: float
    snapshot_id: int | None

    @property
    def ratio_to_minimum(self) -> float:
        """Bytes written per byte of values. Stored keys weigh little beside an embedding and much beside a small count;
        a table by position has none."""
        return self.bytes / self.minimum_bytes if self.minimum_bytes else float("nan")


def add_request_feature(
    main_table: Table,
    side_table: Table,
    compute: Compute,
    *,
    inputs: Sequence[str] | None = None,
    users: np.ndarray | pa.Array | None = None,
    columns: Sequence[Column] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureReport:
    """Compute features of `side_table` for the requests of `main_table` and write them in one commit.

    compute: called once per batch of some thousand requests with one row each: user_id, request_id and the `inputs`,
        blobs as dictionaries (`numpy_from_blobs` opens them). Blob features may be returned as lists or as blobs.
        If it has a method `of`, what `compute.of(schema)` gives is called.
    inputs: columns of the main table that `compute` needs; by default what `compute.inputs(schema)` says if it has
        that method (as `recent_event_counts` does), else all request-level columns.
    users: compute for these only, and write only their buckets. The other requests there keep what they have; those
        that have nothing get null, an empty sequence, or zeros of a vector.
    columns: what `compute` returns, if that is not all features of the table; the others keep their values. A column
        that the table does not have is added, without writing the main table.
    progress: called with buckets done and buckets in total.

    An earlier version of the features is replaced; whoever reads sees the old or the new one, whole. The snapshot
    records the main table's snapshot that was read. Raises ValueError for tables that do not fit together, for results
    that are not one valid value per request, and if a request would be left without a value in a column that cannot
    be null; ConflictError if another writer was faster. Then nothing changed.
    """
    side_table.refresh()
    return Backfill(main_table, side_table, compute, inputs=inputs, users=users, columns=columns).run(progress=progress)


def realign(
    main_table: Table,
    side_table: Table,
    *,
    buckets: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureReport:
    """Carry the values of a feature table over to the requests that the main table has now, in one commit.

    Requests that are gone lose their row; new ones get null, an empty sequence or zeros. It computes nothing. A table
    by position needs it after requests came or went, before the main table's old snapshots expire.
    buckets: only these; None means all.
    """
    side_table.refresh()
    return Backfill(main_table, side_table, None, columns=(), buckets=buckets).run(progress=progress)


class Backfill:
    """One backfill, checked and ready to run; see `add_request_feature`, whose parameters these are.

    compute: None if values are only carried over.  buckets: to write; by default those of `users`, or all.
    updates: that give the feature table another form; all its values are computed then.
    schema: the columns that the feature table has afterwards.
    """

    def __init__(
        self,
        main_table: Table,
        side_table: Table,
        compute: Compute | None,
        *,
        inputs: Sequence[str] | None = None,
        users: np.ndarray | pa.Array | None = None,
        columns: Sequence[Column] | None = None,
        buckets: Sequence[int] | None = None,
        updates: tuple[TableUpdate, ...] = (),
    ) -> None:
        self.side_table, self._compute, self._updates = side_table, compute, updates
        self._target = preview(side_table, updates)
        self.base_snapshot_id = ref_snapshot(side_table, MAIN)
        own = feature_schema(self._target)
        check_one_spec(side_table, "new features")
        check_no_columns_added(
            side_table, [*feature_schema(side_table).names, BUCKET_COLUMN], "write features of it again"
        )
        self._source = TableSource(main_table)
        self._main = SortedTable(main_table, self._source, REQUEST_KEY)
        self._keys = SortedTable(main_table, self._source, REQUEST_KEY)  # two, as each plans for one set of users
        if feature_buckets(self._target) != self._main.num_buckets:
            raise ValueError(
                f"{'.'.join(side_table.name())}: {self._main.num_buckets} buckets as in {self._main.name} required, "
                f"found {feature_buckets(side_table)}; replace_feature_table computes it anew in these buckets"
            )
        self._columns = own.features if columns is None else tuple(columns)
        self._added = _added_columns(main_table, side_table, own, self._columns)
        self.schema = FeatureSchema((*own.columns, *self._added))
        if compute is not None and callable(of := getattr(compute, "of", None)):
            self._compute = of(self._source.schema)
        self._inputs = [*REQUEST_KEY] if compute is None else input_columns(self._source.schema, compute, inputs)
        self._users = None if users is None else np.unique(np.asarray(users, dtype=np.int64))
        num_buckets = self._main.num_buckets
        self.buckets = list(range(num_buckets)) if buckets is None else sorted(set(buckets))
        if self._users is not None:
            self.buckets = np.unique(buckets_of(self._users, num_buckets)).tolist() if len(self._users) else []
            if self._added and self.base_snapshot_id is not None:
                _check_fills(self._added, side_table)
        self.is_whole = len(self.buckets) == num_buckets
        self._num_computed = 0

    def run(
        self,
        *,
        branch: str = MAIN,
        before_commit: Callable[[Table], None] | None = None,
        properties: dict[str, str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> FeatureReport:
        """Compute, write, verify and commit to `branch`; `before_commit` puts that where the table's main branch is.

        properties: for the snapshot's summary, beside its own.
        """
        started = time.monotonic()
        old_files = feature_files(self.side_table, self.base_snapshot_id)
        removed = [file for file in old_files if file.partition[0] in set(self.buckets)]
        updates = self._updates or add_columns(self.side_table, self._added, Layout.BY_REQUEST)
        if self._added:
            updates = (*updates, SetPropertiesUpdate(updates=feature_properties(self.schema)))
        stored = stored_schema(self._target, self.schema)
        by_position = is_by_position(self._target)
        old, self._old_schema = feature_side(self.side_table)
        num_requests = 0
        with StagedFiles(self.side_table, as_engagement_schema(stored), updates) as files:
            for done, bucket in enumerate(self.buckets):
                hashes: list[str] = []
                for rows in row_groups(self._rows(bucket, old)):
                    written = pa.Table.from_batches([rows.select(list(stored.names))])
                    num_requests += files.write(bucket, written, target_bytes=2**63)
                    if by_position:
                        hashes.append(key_hash(*key_columns(rows, REQUEST_KEY)))
                        assert self._source.snapshot_id is not None
                        files.describe(Positions(self._source.snapshot_id, tuple(hashes)).to_footer())
                files.close_file()
                if progress is not None:
                    progress(done + 1, len(self.buckets))
            if self._users is not None and self._num_computed == 0:
                raise ValueError(
                    f"users: requests in {self._main.name} required, found none of these {len(self._users):,} users "
                    "there"
                )
            files.verify(num_rows=num_requests, num_requests=None if by_position else num_requests)
            if before_commit is not None:
                before_commit(self.side_table)
            snapshot_id = files.commit(
                replace=True,
                removed=None if self._updates else removed,
                properties=self._summary() | (properties or {}),
                branch=branch,
                rebase=branch != MAIN,  # nobody else writes there
            )
            data_files, names = files.data_files, files.target.schema()
        column_bytes = dict.fromkeys(self.schema.names, 0)
        for data_file in data_files:
            for field_id, size in data_file.column_sizes.items():
                column_bytes[names.find_column_name(field_id) or ""] += size
        return FeatureReport(
            requests=num_requests,
            computed=self._num_computed,
            buckets=len(self.buckets),
            files=len(data_files),
            bytes=sum(data_file.file_size_in_bytes for data_file in data_files),
            minimum_bytes=sum(column_bytes[column.name] for column in self._columns or self.schema.features),
            key_bytes=sum(column_bytes[name] for name in REQUEST_KEY),
            seconds=time.monotonic() - started,
            snapshot_id=snapshot_id,
        )

    def _summary(self) -> dict[str, str]:
        _, first = same_requests(self._source.table.metadata, self._source.snapshot_id)
        return {
            **({MAIN_REQUESTS: str(first)} if first is not None else {}),
            MAIN_TABLE: self._main.name,
            MAIN_SNAPSHOT: str(self._source.snapshot_id),
            BUCKETS: "all" if self.is_whole else ",".join(map(str, self.buckets)),
            FEATURES_PROPERTY: features_json(self.schema),
        }

    def _rows(self, bucket: int, old: SortedSource) -> Iterator[pa.RecordBatch]:
        """The bucket's rows of the feature table: every request of the main table once."""
        computed = self._computed(bucket)
        kept = self.schema.features if self._users is not None or self._compute is None else self._kept
        kept = tuple(column for column in kept if column.name in self._old_schema.names)
        if self._users is None and self._compute is not None:
            rows = computed
        else:
            rows = first_rows(self._keys.stream(bucket, self._keys.num_buckets, list(REQUEST_KEY)), self._keys.name)
            if self._compute is not None:
                new = (_renamed(batch, _NEW, is_new=True) for batch in computed)
                rows = _left_join(rows, new, [_nullable(column, _NEW) for column in self._columns] + [_IS_NEW])
        if kept:
            names = [*REQUEST_KEY, *(column.name for column in kept)]
            earlier = (_renamed(batch, _OLD) for batch in old.stream(bucket, old.num_buckets, names))
            rows = _left_join(rows, earlier, [_nullable(column, _OLD) for column in kept], old.name)
        for batch in rows:
            arrays = [batch.column(name) for name in REQUEST_KEY]
            arrays += [self._value(batch, column) for column in self.schema.features]
            yield pa.RecordBatch.from_arrays(arrays, names=[*REQUEST_KEY, *(c.name for c in self.schema.features)])

    @property
    def _kept(self) -> tuple[Column, ...]:
        return tuple(column for column in self.schema.features if column not in self._columns)

    def _computed(self, bucket: int) -> Iterator[pa.RecordBatch]:
        if self._compute is None:
            return
        batches = self._main.stream(bucket, self._main.num_buckets, self._inputs, self._users)
        for batch in compute_values(first_rows(batches, self._main.name), self._compute, self._columns):
            self._num_computed += batch.num_rows
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


def _added_columns(
    main_table: Table, side_table: Table, own: FeatureSchema, columns: Sequence[Column]
) -> tuple[Column, ...]:
    """Those of `columns` that the table does not have. Raises ValueError for one that it has in another form."""
    by_name = {column.name: column for column in own.features}
    for column in columns:
        if column != by_name.get(column.name, column):
            raise ValueError(
                f"{'.'.join(side_table.name())}: feature {column.name} as the table has it required "
                f"({by_name[column.name]}), found {column}; a feature of another form needs another name"
            )
    added = tuple(column for column in columns if column.name not in by_name)
    if added:
        check_features(main_table, added)
    return added


def _check_fills(added: Sequence[Column], side_table: Table) -> None:
    """Buckets without these users are not written: their files lack the column, which reads as null."""
    cannot = [column.name for column in added if column.is_blob or not column.nullable]
    if cannot:
        raise ValueError(
            f"{'.'.join(side_table.name())}: nullable scalars required if columns are added for some users only, since "
            f"other buckets are not written, found {', '.join(cannot)}; compute for all users, or use a table of its "
            "own"
        )


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
