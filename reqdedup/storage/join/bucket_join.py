"""Bucket join: two tables with the same buckets and order, merged bucket by bucket without a shuffle.

    left   bucket 0 | bucket 1 | ...      bucket b of one side only ever meets bucket b of the other;
    right  bucket 0 | bucket 1 | ...      inside, both are sorted, so each is read once, from front to back

Nothing is hashed, sorted, spilled or exchanged. Memory is about one row group of each side per thread, and of the
joined batches what a thread has ready before its turn, whatever the tables hold. Blobs stay dictionary-encoded and are
never compared; those of the left side keep their memory, except in a batch that is cut or put together of two, those of
the right side are gathered once per request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.dedup.readable import Readable
from reqdedup.dedup.streams import REQUEST_KEY, ROW_KEY, merge_streams
from reqdedup.schema import KEYS, Column, EngagementSchema, Level
from reqdedup.storage.join.merge import (
    DUPLICATES_ERROR,
    DUPLICATES_FIRST,
    INNER,
    LEFT,
    JoinCounts,
    MergeJoin,
    join_order,
)
from reqdedup.storage.join.ordered import run_ordered
from reqdedup.storage.read.buckets import SortedSource, SortedTable, check_sorted, join_units
from reqdedup.storage.read.feature_positions import feature_side
from reqdedup.storage.read.feature_table import is_feature_table
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.read.table_source import TableSource
from reqdedup.storage.tasks.write import write
from reqdedup.storage.write.writer import WriteReport

MAX_AHEAD_BYTES = 32 * 2**20
"""Of joined batches that a thread may have ready before the buckets ahead of its own have been read."""


class BucketJoin(Readable):
    """A bucket join as a source of deduplicated batches, read anew at every pass; see `bucket_join`.

    schema: the left columns, then those that the right side adds.
    num_buckets: units that can be read apart from one another.  num_bytes: of the stored files of both sides.
    """

    requests_whole = True

    def __init__(
        self,
        left: SortedSource,
        left_schema: EngagementSchema,
        right: SortedSource,
        join: MergeJoin,
        *,
        threads: int,
    ) -> None:
        self.schema = left_schema.with_columns(*join.right_columns)
        self.name = f"{left.name} join {right.name}"
        self.num_buckets, self.num_bytes = join_units(left, right), left.num_bytes + right.num_bytes
        self._left, self._right, self._left_schema, self._join = left, right, left_schema, join
        self._threads = threads
        self._counts: JoinCounts | None = None

    def item_keys(self, item_id: np.ndarray) -> np.ndarray | None:
        return self._left.item_keys(item_id) if isinstance(self._left, Readable) else None

    @property
    def counts(self) -> JoinCounts:
        """What the last pass over all users met, or the last `write_to`. Raises ValueError before one has ended."""
        if self._counts is None:
            raise ValueError(f"{self.name}: counts are known after a pass over batches() to its end, found none yet")
        return self._counts

    def __repr__(self) -> str:
        """With how many rows got nothing from the right side, once a pass has told."""
        told = ""
        if self._counts is not None and self._join.how == LEFT:
            counts = self._counts
            told = f", {counts.missing_rows:,} of {counts.left_rows:,} rows without one in {self._join.right_name}"
        on, added = ", ".join(self._join.on), ", ".join(column.name for column in self._join.right_columns)
        return f"<BucketJoin {self.name}: {self._join.how} on {on}, adds {added}{told}>"

    def fingerprint(self) -> dict[str, str]:
        """Of both sides, and how they are joined; see `BatchSource`."""
        join = self._join
        added = [column.name for column in join.right_columns]
        return {
            **{f"left {name}": value for name, value in self._left.fingerprint().items()},
            **{f"right {name}": value for name, value in self._right.fingerprint().items()},
            "join": f"{join.how} on {', '.join(join.on)}, duplicates: {join.duplicates}, adds {', '.join(added)}",
        }

    def batches(
        self, columns: Sequence[str] | None = None, users: np.ndarray | pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Joined batches, bucket by bucket and in key order inside each; requests are whole.

        columns: exactly these, in schema order; None means all. Others are not read, apart from the keys.
        users: only the rows of these user ids; other buckets are not read, and `counts` stays as it is.
        """
        names = self.schema.names if columns is None else columns
        unknown = sorted(set(names) - set(self.schema.names))
        if unknown:
            raise ValueError(f"no such columns: {', '.join(unknown)}; there are {', '.join(self.schema.names)}")
        wanted = None if users is None else np.unique(np.asarray(users, dtype=np.int64))
        counts = [JoinCounts() for _ in range(self.num_buckets)]
        units = [
            partial(self._unit, unit, self.num_buckets, names, wanted, counts[unit]) for unit in range(len(counts))
        ]
        yield from run_ordered(
            units, threads=self._threads, weigh=lambda batch: batch.nbytes, max_ahead=MAX_AHEAD_BYTES
        )
        if users is None:
            total = JoinCounts()
            for one in counts:
                total.add(one)
            self._counts = total

    def stream(
        self, unit: int, num_units: int, columns: Sequence[str], users: np.ndarray | None = None
    ) -> Iterator[pa.RecordBatch]:
        """As a side of another join: the rows of the buckets b with b % num_units == unit, in order."""
        units = [own for own in range(self.num_buckets) if own % num_units == unit]
        streams = [self._unit(own, self.num_buckets, columns, users, JoinCounts()) for own in units]
        return merge_streams(streams, REQUEST_KEY, self.name)

    def write_to(self, table: Table, **options: Any) -> WriteReport:
        """Write the joined rows into a bucketed table of this schema, bucket by bucket, in one commit.

        options: mode, progress, spill_dir, properties and engine of `storage.write`.
        """
        return write(table, self, **options)

    def was_written(self, notes: list[Any]) -> None:
        """See `BucketSource`."""
        self._counts = JoinCounts()
        for counts in notes:
            self._counts.add(counts)

    def in_order(self, num_units: int) -> bool:
        return True

    @property
    def file_sources(self) -> list[FileSource]:
        """What both sides read."""
        return [*self._left.file_sources, *self._right.file_sources]

    def weights(self, num_units: int) -> np.ndarray:
        """Rows of the left side in each unit, [num_units] int64."""
        return self._left.weights(num_units)

    def of_unit(
        self, unit: int, num_units: int, notes: list[Any], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `BucketSource`; it notes the counts."""
        counts, names = JoinCounts(), self.schema.names if columns is None else columns
        units = [own for own in range(self.num_buckets) if own % num_units == unit]
        streams = [self._unit(own, self.num_buckets, names, None, counts) for own in units]
        yield from merge_streams(streams, REQUEST_KEY, self.name)
        notes.append(counts)

    def _unit(
        self, unit: int, num_units: int, columns: Sequence[str], users: np.ndarray | None, counts: JoinCounts
    ) -> Iterator[pa.RecordBatch]:
        wanted = {*columns, *self._join.on}
        added = tuple(column for column in self._join.right_columns if column.name in wanted)
        left_columns = [name for name in self._left_schema.names if name in wanted]
        right_columns = [*self._join.on, *(column.name for column in added)]
        left = self._left.stream(unit, num_units, left_columns, users)
        right = self._right.stream(unit, num_units, right_columns, users)
        output = [name for name in self.schema.names if name in set(columns)]
        for batch in replace(self._join, right_columns=added).run(left, right, counts):
            yield batch.select(output)


def bucket_join(
    left: Table | BucketJoin,
    right: Table,
    *,
    on: Sequence[str] = REQUEST_KEY,
    how: Literal["inner", "left"] = "inner",
    columns: Sequence[str] | None = None,
    duplicates: Literal["error", "first"] = "error",
    right_snapshot_id: int | None = None,
    threads: int = 1,
) -> BucketJoin:
    """The rows of `left` with the columns of `right` that belong to the same request, or (request, item).

    left: a bucketed, sorted engagement table, or a join (so that several tables can be joined, one after the other).
    right: a feature table (`create_feature_table`) or a bucketed, sorted engagement table.
        Bucket counts must divide each other. Both are pinned to their current snapshot.
    on: ("user_id", "request_id"), or these and "item_id". A request-level join adds request-level columns; with item_id
        columns keep their level, so that late labels stay labels.
    how: "inner" drops left rows without a right row; "left" keeps them, with null in scalars (the columns become
        nullable), an empty value in sequences and zeros in vectors, since blobs cannot be null. `counts.missing_rows`
        says how many there were.
    columns: of `right`, all but the keys by default.
    duplicates: a right key that is there twice is an error, or with "first" its first row in table order is taken.
    right_snapshot_id: of `right`, in place of its current one: a feature that is staged, or an older version.
    threads: buckets joined at once; the output is the same and in the same order.

    Nothing is read before `batches()`. Raises ValueError for tables that are not bucketed and sorted as required, for
    columns that both sides have, and for an item-level column joined without item_id; while reading, for rows out of
    order and for duplicate right keys.
    """
    order = join_order(on)
    for name, value, allowed in (
        ("how", how, (INNER, LEFT)),
        ("duplicates", duplicates, (DUPLICATES_ERROR, DUPLICATES_FIRST)),
    ):
        if value not in allowed:
            raise ValueError(f"bucket_join: {name} must be one of {allowed}, found {value!r}")
    if threads < 1:
        raise ValueError(f"bucket_join: threads must be at least 1, found {threads}")
    if isinstance(left, BucketJoin):
        left_side: SortedSource = left
        left_schema = left.schema
    else:
        left_source = TableSource(left)
        left_schema = left_source.schema
        left_side = SortedTable(left, left_source, REQUEST_KEY, use_threads=threads == 1)
    right_side: SortedSource
    if is_feature_table(right):
        if order != REQUEST_KEY:
            check_sorted(right, order)  # says that it has no items to be sorted by
        right_side, feature_schema = feature_side(right, snapshot_id=right_snapshot_id)
        right_columns = feature_schema.columns
    else:
        right_source = TableSource(right, snapshot_id=right_snapshot_id)
        right_columns = right_source.schema.columns
        right_side = SortedTable(right, right_source, order, use_threads=threads == 1)
    added = _added_columns(right_side.name, right_columns, left_schema, order, how, columns)
    join = MergeJoin(
        on=order,
        how=how,
        right_columns=added,
        duplicates=duplicates,
        left_name=left_side.name,
        right_name=right_side.name,
    )
    return BucketJoin(left_side, left_schema, right_side, join, threads=threads)


def _added_columns(
    right_name: str,
    right_columns: Sequence[Column],
    left_schema: EngagementSchema,
    on: Sequence[str],
    how: str,
    columns: Sequence[str] | None,
) -> tuple[Column, ...]:
    """The right columns as they are in the result."""
    by_name = {column.name: column for column in right_columns if column.name not in KEYS}
    unknown = sorted(set(columns or ()) - set(by_name))
    if unknown:
        raise ValueError(f"{right_name}: no such columns: {', '.join(unknown)}; there are {', '.join(by_name)}")
    chosen = [column for name, column in by_name.items() if columns is None or name in columns]
    both = [column.name for column in chosen if column.name in left_schema]
    if both:
        raise ValueError(
            f"bucket_join: columns of {right_name} that the left side has too: {', '.join(both)}; "
            f"choose the others with columns=[...], there are {', '.join(by_name)}"
        )
    if tuple(on) != ROW_KEY:
        per_row = [column.name for column in chosen if column.level is not Level.REQUEST]
        if per_row:
            raise ValueError(
                f"bucket_join: {', '.join(per_row)} of {right_name} differ per row; join on {ROW_KEY}, "
                "or choose request-level columns with columns=[...]"
            )
    if how == LEFT:
        chosen = [column if column.is_blob else replace(column, nullable=True) for column in chosen]
    return tuple(chosen)
