"""Features without keys: row i of a bucket's file is of the i-th request of that bucket of the main table.

    main table, bucket 3     requests 7/70 7/71 9/90 ...      keys, read from the snapshot the features were made from
    feature file, bucket 3   values    4    0    12  ...      footer: that snapshot, a hash of the keys per row group

What keeps this right while the main table changes: the file names its snapshot, and no row is handed out before the
hash of the keys beside it has been compared. Compaction leaves the order of the requests as it is, so files stay valid
even after their snapshot has expired. Appended, changed or deleted requests shift positions: the old snapshot then says
which request a row is of, and once it has expired the read is refused. `realign` carries values over to the present
requests; do it before expiring. A file whose rows another engine has moved, or written again, fails on its hash.

Reading costs a pass over the keys of the main table; a table with stored keys does not need it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table

from reqdedup.dedup.encoding import deduplicated_schema
from reqdedup.dedup.rows import concat, take_rows
from reqdedup.dedup.streams import REQUEST_KEY, Cursor, key_columns, merge_streams
from reqdedup.schema import REQUEST_ID, USER_ID
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.iceberg.manifests import stored_bytes
from reqdedup.storage.read.buckets import SortedSource, SortedTable
from reqdedup.storage.read.feature_table import (
    MAIN_TABLE_PROPERTY,
    MAIN_UUID_PROPERTY,
    FeatureSchema,
    FeatureSource,
    as_engagement_schema,
    feature_buckets,
    is_by_position,
)
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.read.table_source import TableSource

FOOTER_KEY = "reqdedup.positions"
"""Entry of a file's footer: a JSON object with the fields of `Positions` and their format."""

POSITIONS_FORMAT = 1
"""Files of version 0.1.0 have no number and are read as 1."""


@dataclass(frozen=True)
class Positions:
    """Which requests a file's rows are of. main_snapshot: of the main table.  key_hashes: one per row group."""

    main_snapshot: int
    key_hashes: tuple[str, ...]

    def to_footer(self) -> dict[str, str]:
        return {FOOTER_KEY: json.dumps({"format": POSITIONS_FORMAT, **vars(self)})}


def key_hash(user_id: np.ndarray, request_id: np.ndarray) -> str:
    """128-bit hash of a sequence of requests."""
    digest = hashlib.blake2b(digest_size=16)
    for column in (user_id, request_id):
        digest.update(np.ascontiguousarray(column, "<i8").data)
    return digest.hexdigest()


def feature_side(table: Table, *, snapshot_id: int | None = None) -> tuple[SortedSource, FeatureSchema]:
    """A feature table of either form as a side of a join, and its columns."""
    source = FeatureSource(table, snapshot_id=snapshot_id)
    side = PositionSource(table, source) if is_by_position(table) else SortedTable(table, source, REQUEST_KEY)
    return side, source.feature_schema


def first_rows(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[pa.RecordBatch]:
    """One row per request, the first, of batches in request order; `name` of the table, for errors."""
    cursor = Cursor(batches, REQUEST_KEY, name)
    while cursor.fill():
        rows = cursor.take()
        yield take_rows(rows.batch, rows.runs.starts[-1])


class PositionSource:
    """A snapshot of a table by position, as a side of a join: its values with the keys of the main table.

    The main table is opened where the first rows are asked for. Raises ValueError, then, for files that belong to
    requests which can no longer be told.
    """

    def __init__(self, table: Table, source: FeatureSource) -> None:
        self.name = ".".join(table.name())
        num_buckets = feature_buckets(table)
        assert num_buckets is not None
        self.num_buckets, self.num_bytes = num_buckets, stored_bytes(table)
        self._table, self._source, self._schema = table, source, source.feature_schema
        self._main: Table | None = None
        self._keys: dict[int | None, SortedTable] = {}

    def __getstate__(self) -> None:
        raise ValueError(
            f"{self.name}: a feature table with keys required to be read by other processes, found one by position, "
            "whose keys are in earlier snapshots of its main table; choose engine='inline'"
        )

    def stream(
        self, unit: int, num_units: int, columns: Sequence[str], users: np.ndarray | None = None
    ) -> Iterator[pa.RecordBatch]:
        buckets = range(unit, self.num_buckets, num_units)
        if users is not None:
            wanted = set(buckets_of(users, self.num_buckets).tolist())
            buckets = [bucket for bucket in buckets if bucket in wanted]  # type: ignore[assignment]
        streams = [
            self._bucket(bucket, groups, columns, users) for bucket in buckets if (groups := self._groups(bucket))
        ]
        return merge_streams(streams, REQUEST_KEY, self.name) if streams else iter(())

    @property
    def file_sources(self) -> list[FileSource]:
        """What it reads, beside the keys of the main table."""
        return [self._source]

    def weights(self, num_units: int) -> np.ndarray:
        """Requests of each unit, by the footers."""
        rows = np.zeros(num_units, np.int64)
        for bucket in range(self.num_buckets):
            rows[bucket % num_units] += sum(group.num_rows for group in self._groups(bucket))
        return rows

    def fingerprint(self) -> dict[str, str]:
        return self._source.fingerprint()

    def positions(self, path: str) -> Positions:
        """What the footer of a file says. Raises ValueError if it says nothing."""
        entry = (self._source.footer(path).metadata or {}).get(FOOTER_KEY.encode())
        if entry is None:
            raise ValueError(
                f"{self.name}: {path}: footer entry {FOOTER_KEY} required, found none, so another engine wrote the "
                "file and its rows may be of any request; roll the table back to a tag, or compute the features again"
            )
        fields = json.loads(entry)
        if fields.get("format", POSITIONS_FORMAT) != POSITIONS_FORMAT:
            raise ValueError(
                f"{self.name}: {path}: format {POSITIONS_FORMAT} of footer entry {FOOTER_KEY} required, found "
                f"{fields['format']}; a newer reqdedup wrote the file: read it with that one"
            )
        return Positions(fields["main_snapshot"], tuple(fields["key_hashes"]))

    def _groups(self, bucket: int) -> list[RowGroup]:
        groups = self._source.row_groups(bucket=bucket)
        if len({group.path for group in groups}) > 1:
            raise ValueError(
                f"{self.name}: one file per bucket required in a table by position, found "
                f"{len({group.path for group in groups})} in bucket {bucket}; roll it back to a tag, or compute it "
                "again"
            )
        return groups

    def _bucket(
        self, bucket: int, groups: list[RowGroup], columns: Sequence[str], users: np.ndarray | None
    ) -> Iterator[pa.RecordBatch]:
        positions = self.positions(groups[0].path)
        keys = _Keys(self._main_keys(positions.main_snapshot), bucket, self.num_buckets)
        stored = [name for name in columns if name not in REQUEST_KEY]
        for index, group in enumerate(groups):
            key = keys.take(group.num_rows)
            found = key_hash(*key_columns(key, REQUEST_KEY)) if key is not None else "fewer requests"
            if index >= len(positions.key_hashes) or found != positions.key_hashes[group.index]:
                raise self._moved(bucket, positions)
            assert key is not None
            arrays = {name: key.column(name) for name in REQUEST_KEY}
            if stored:
                values = self._source.read_row_group(group, stored)
                arrays |= dict(zip(values.schema.names, values.columns))
            names = [name for name in self._schema.names if name in set(columns)]
            schema = deduplicated_schema(as_engagement_schema(self._schema))
            fields = pa.schema([schema.field(name) for name in names])
            batch = pa.RecordBatch.from_arrays([arrays[name] for name in names], schema=fields)
            if users is not None:
                batch = take_rows(batch, np.isin(arrays[USER_ID].to_numpy(), users))
            if batch.num_rows:
                yield batch
        if keys.take(1) is not None or len(groups) != len(positions.key_hashes):
            raise self._moved(bucket, positions)

    def _main_keys(self, snapshot_id: int) -> SortedTable:
        """The main table's keys at that snapshot, or at its newest where that one has expired."""
        if self._main is None:
            self._main = self._load_main()
        known = self._main.snapshot_by_id(snapshot_id) is not None
        at = snapshot_id if known else None
        if at not in self._keys:
            self._keys[at] = SortedTable(self._main, TableSource(self._main, snapshot_id=at), REQUEST_KEY)
        return self._keys[at]

    def _load_main(self) -> Table:
        name, uuid = (self._table.properties[key] for key in (MAIN_TABLE_PROPERTY, MAIN_UUID_PROPERTY))
        try:
            main = self._table.catalog.load_table(name)
        except NoSuchTableError:
            main = None
        if main is None or str(main.metadata.table_uuid) != uuid:
            raise ValueError(
                f"{self.name}: its main table {name} required, since it stores values by position, found "
                f"{'none' if main is None else 'another table of that name'}; create the feature table again"
            )
        return main

    def _moved(self, bucket: int, positions: Positions) -> ValueError:
        known = self._main is not None and self._main.snapshot_by_id(positions.main_snapshot) is not None
        found = (
            "others there: the file was changed" if known else "that snapshot expired and the requests changed since"
        )
        return ValueError(
            f"{self.name}: the requests of bucket {bucket} at main snapshot {positions.main_snapshot} required, found "
            f"{found}; compute the features of this bucket again, and call realign before snapshots expire"
        )


class _Keys:
    """The requests of one bucket in order, taken in stretches of any length."""

    def __init__(self, main: SortedTable, bucket: int, num_buckets: int) -> None:
        self._batches = first_rows(main.stream(bucket, num_buckets, [USER_ID, REQUEST_ID]), main.name)
        self._parts: list[pa.RecordBatch] = []
        self._num_rows = 0

    def take(self, num_requests: int) -> pa.RecordBatch | None:
        """The next requests, exactly so many; None if there are fewer."""
        while self._num_rows < num_requests:
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._parts.append(batch)
            self._num_rows += batch.num_rows
        together = concat(self._parts)
        self._parts = [together.slice(num_requests)]
        self._num_rows -= num_requests
        return together.slice(0, num_requests)
