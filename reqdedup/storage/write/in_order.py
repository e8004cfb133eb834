"""Rows that already lie in (user_id, request_id, item_id) order, cut into the row groups of a layout without a spill.

    | 7,70 7,70 7,71 | 7,71 9,90 ... -> wait for more rows than a row group takes -> cut between requests, hold the rest

The row groups are those that the spill would have made of the same rows. Memory: one row group and one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import pyarrow as pa

from reqdedup.arrays.keys import first_disorder, run_starts
from reqdedup.arrays.ranges import greedy_ranges
from reqdedup.dedup.encoding import element_type
from reqdedup.dedup.parts import blob_bytes, check_one_value_per_request
from reqdedup.dedup.rows import compact_batch, concat, each_value_once
from reqdedup.dedup.stored import has_offsets, value_bytes
from reqdedup.dedup.streams import REQUEST_KEY, ROW_KEY, key_columns
from reqdedup.schema import USER_ID, EngagementSchema, Level
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.write.arrange import scalar_bytes


class InOrder:
    """Batches that come bucket after bucket, each by key, as a bucket join gives them and a sample of one: no spill.

    batches: of whole buckets of the table that they are written into, each bucket once.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self._batches)

    def by_bucket(self, num_buckets: int) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
        """The batches of each bucket. Raises ValueError for one of several, and for a bucket that comes again."""
        seen: set[int] = set()
        for bucket, together in groupby(self._with_bucket(num_buckets), key=lambda pair: pair[0]):
            if bucket in seen:
                raise ValueError(
                    f"rows of one bucket together required, but bucket {bucket} comes again; write unordered"
                )
            seen.add(bucket)
            yield bucket, (batch for _, batch in together)

    def _with_bucket(self, num_buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        for batch in self._batches:
            if batch.num_rows:
                buckets = np.unique(buckets_of(np.unique(batch.column(USER_ID).to_numpy()), num_buckets))
                if len(buckets) > 1:
                    raise ValueError(
                        f"batches of one bucket of {num_buckets} each required, found one of the buckets "
                        f"{', '.join(map(str, buckets[:8]))}; write into as many buckets as they were read from, or "
                        "unordered"
                    )
                yield int(buckets[0]), batch


def row_groups_in_order(
    batches: Iterable[pa.RecordBatch],
    schema: EngagementSchema,
    *,
    max_rows: int,
    max_column_bytes: int,
    max_fat_bytes: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of one bucket as deduplicated batches, each a row group; limits as in `in_request_order`.

    Raises ValueError as soon as a key falls, or if rows of one request disagree in a request-level value.
    """

    def ranges_of(rows: pa.RecordBatch) -> list[tuple[int, int]]:
        return _ranges(rows, schema, max_rows=max_rows, max_column_bytes=max_column_bytes, max_fat_bytes=max_fat_bytes)

    waiting: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        num_rows += batch.num_rows
        num_bytes += max((_dictionary_bytes(column) for column in batch.columns), default=0)
        if num_rows >= max_rows or num_bytes >= max_column_bytes:
            rows = concat(waiting)
            ranges = ranges_of(rows)
            yield from (_row_group(rows.slice(start, end - start), schema) for start, end in ranges[:-1])
            start, end = ranges[-1]  # its last request may go on in the next batch
            waiting = [compact_batch(rows.slice(start, end - start))]
            num_rows, num_bytes = end - start, max((_dictionary_bytes(c) for c in waiting[0].columns), default=0)
    if waiting:
        rows = concat(waiting)
        yield from (_row_group(rows.slice(start, end - start), schema) for start, end in ranges_of(rows))


def _ranges(
    rows: pa.RecordBatch,
    schema: EngagementSchema,
    *,
    max_rows: int,
    max_column_bytes: int,
    max_fat_bytes: int | None,
) -> list[tuple[int, int]]:
    """First and last row + 1 of each row group."""
    key = key_columns(rows, [name for name in ROW_KEY if name in schema.names])
    row = first_disorder(key)
    if row >= 0:
        raise ValueError(
            f"rows in ({', '.join(ROW_KEY[: len(key)])}) order required, but row {row:,} of a bucket's batch is less "
            "than the row before it; write them without in_order"
        )
    starts = run_starts(key[:2])
    ends = np.append(starts[1:], rows.num_rows)
    rows_of = ends - starts
    blobs = [_value_bytes(rows.column(column.name))[starts] for column in schema.blobs]
    limits = [(max_rows, rows_of), *((max_column_bytes, sizes) for sizes in blobs)]
    texts = [c.name for c in schema.columns if not c.is_blob and has_offsets(element_type(c))]
    limits += [(max_column_bytes, np.add.reduceat(value_bytes(rows.column(name)), starts)) for name in texts]
    if max_fat_bytes is not None:
        row_bytes = sum(blobs, np.zeros(len(starts), np.int64)) + scalar_bytes(schema)
        limits.append((max_fat_bytes, rows_of * row_bytes))
    return [(int(starts[first]), int(ends[last - 1])) for first, last in greedy_ranges(*limits)]


def _row_group(rows: pa.RecordBatch, schema: EngagementSchema) -> pa.RecordBatch:
    """The rows with every blob once, by value, in the order in which the rows first use it."""
    starts = run_starts(key_columns(rows, REQUEST_KEY))
    request_of_row = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, rows.num_rows)))
    request_level = [column for column in schema.columns if column.level is Level.REQUEST]
    check_one_value_per_request(rows, request_level, request_of_row, starts)
    return each_value_once(rows)


def _value_bytes(array: pa.DictionaryArray) -> np.ndarray:
    """Bytes of each row's blob, [N] int64."""
    return blob_bytes(array.dictionary)[array.indices.to_numpy()]


def _dictionary_bytes(array: pa.Array) -> int:
    return int(blob_bytes(array.dictionary).sum()) if pa.types.is_dictionary(array.type) else 0
