"""Backfill of request features: computed once per request, written beside the main table, readable at once.

    main table, bucket by bucket -> first row of every request -> compute -> side table, same buckets and order

The main table is read, never written. With `users` only their buckets are written again: their requests get the new
value, the others of these buckets keep theirs. Columns that are not computed keep their values too, and a column that
the table does not have yet is added. All of it is a merge of sorted streams, one batch of each in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import SetPropertiesUpdate, TableUpdate

from reqdedup.dedup.streams import REQUEST_KEY
from reqdedup.display import counted
from reqdedup.distributed import Engine, engine_for
from reqdedup.schema import Column, EngagementSchema
from reqdedup.storage.features.bucket_values import BucketValues
from reqdedup.storage.features.values import Compute, input_columns
from reqdedup.storage.iceberg.changes import check_no_columns_added, check_one_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.evolve import MAIN, add_columns, ref_snapshot
from reqdedup.storage.iceberg.form import preview
from reqdedup.storage.iceberg.layout import Layout, buckets_of
from reqdedup.storage.iceberg.manifests import stored_bytes
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.same_requests import same_requests
from reqdedup.storage.read.buckets import SortedTable
from reqdedup.storage.read.feature_positions import feature_side
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
from reqdedup.storage.tasks import BucketTask, adopt_all, is_decided

MAIN_TABLE, MAIN_SNAPSHOT, BUCKETS = "reqdedup.main-table", "reqdedup.main-snapshot", "reqdedup.buckets"
"""Snapshot properties: what the features were computed from, and the buckets that were written (or "all")."""

MAIN_REQUESTS = "reqdedup.main-requests"
"""Snapshot property: the first snapshot of the main table that had these requests, if that can be told."""


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
    engine: str | Engine | None = None,
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
    engine: where buckets are computed: "inline", "processes:N"; see `reqdedup.distributed`.

    An earlier version of the features is replaced; whoever reads sees the old or the new one, whole. The snapshot
    records the main table's snapshot that was read. Raises ValueError for tables that do not fit together, for results
    that are not one valid value per request, and if a request would be left without a value in a column that cannot
    be null; ConflictError if another writer was faster. Then nothing changed.
    """
    side_table.refresh()
    backfill = Backfill(main_table, side_table, compute, inputs=inputs, users=users, columns=columns)
    return backfill.run(progress=progress, engine=engine)


def realign(
    main_table: Table,
    side_table: Table,
    *,
    buckets: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    engine: str | Engine | None = None,
) -> FeatureReport:
    """Carry the values of a feature table over to the requests that the main table has now, in one commit.

    Requests that are gone lose their row; new ones get null, an empty sequence or zeros. It computes nothing. A table
    by position needs it after requests came or went, before the main table's old snapshots expire.
    buckets: only these; None means all.  engine: as of `add_request_feature`.
    """
    side_table.refresh()
    return Backfill(main_table, side_table, None, columns=(), buckets=buckets).run(progress=progress, engine=engine)


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
                f"{'.'.join(side_table.name())}: {counted(self._main.num_buckets, 'bucket')} as in {self._main.name} "
                f"required, found {feature_buckets(side_table)}; replace_feature_table computes it anew"
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

    def run(
        self,
        *,
        branch: str = MAIN,
        before_commit: Callable[[Table], None] | None = None,
        properties: dict[str, str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        engine: str | Engine | None = None,
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
        stored = as_engagement_schema(stored_schema(self._target, self.schema))

        def report(done: int) -> None:
            if progress is not None:
                progress(done, len(self.buckets))

        with StagedFiles(self.side_table, stored, updates) as files:
            work = self._work(stored, updates)
            num_bytes = stored_bytes(self._source.table) // self._main.num_buckets
            tasks = [BucketTask(bucket=b, write_id=files.write_id, num_bytes=num_bytes) for b in self.buckets]
            chosen = engine_for(engine, work, num_tasks=len(tasks), num_bytes=num_bytes * len(tasks))
            lead = None if is_decided(self.side_table, stored, updates) or not tasks else 0
            written = adopt_all(files, work, tasks, chosen, lead=lead, progress=report)
            num_computed = sum(one.note for one in written)
            if self._users is not None and num_computed == 0:
                raise ValueError(
                    f"users: requests in {self._main.name} required, found none of these {len(self._users):,} users "
                    "there"
                )
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
            requests=sum(one.rows for one in written),
            computed=num_computed,
            buckets=len(self.buckets),
            files=len(data_files),
            bytes=sum(data_file.file_size_in_bytes for data_file in data_files),
            minimum_bytes=sum(column_bytes[column.name] for column in self._columns or self.schema.features),
            key_bytes=sum(column_bytes[name] for name in REQUEST_KEY),
            seconds=time.monotonic() - started,
            snapshot_id=snapshot_id,
        )

    def _work(self, stored: EngagementSchema, updates: tuple[TableUpdate, ...]) -> BucketValues:
        old, old_schema = feature_side(self.side_table)
        return BucketValues(
            table=PortableTable(self.side_table),
            stored=stored,
            schema=self.schema,
            updates=updates,
            main=self._main,
            keys=self._keys,
            old=old,
            old_schema=old_schema,
            main_snapshot=self._source.snapshot_id if is_by_position(self._target) else None,
            compute=self._compute,
            inputs=self._inputs,
            columns=self._columns,
            users=self._users,
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
