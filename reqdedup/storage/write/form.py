"""Rows in the physical form of a layout: blobs as they are, or a plain list on every row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from reqdedup.arrays.keys import run_starts
from reqdedup.arrays.ranges import greedy_ranges
from reqdedup.dedup.encoding import lists_from_blobs
from reqdedup.schema import Column, EngagementSchema
from reqdedup.storage.iceberg.layout import Layout

MAX_CHUNK_BYTES = 128 * 2**10
"""Copies of one list that are laid down before the chunk is used again."""


def in_form(batch: pa.RecordBatch, layout: Layout, schema: EngagementSchema) -> pa.Table:
    """The batch as the layout stores it: blobs, or plain lists."""
    return pa.Table.from_batches([batch]) if layout.has_blobs else fat_rows(batch, schema)


def fat_rows(batch: pa.RecordBatch, schema: EngagementSchema) -> pa.Table:
    """The batch with every blob as a plain list on each of its rows.

    A long list that many rows repeat is laid down a few times and those chunks are used again and again, so that the
    rows of a request cost about MAX_CHUNK_BYTES and not F times the list.
    """
    arrays = []
    for column in schema.columns:
        array = batch.column(column.name)
        arrays.append(_repeated_lists(array, column) if column.is_blob else array)
    return pa.table(arrays, names=list(schema.names))


def _repeated_lists(array: pa.DictionaryArray, column: Column) -> pa.ChunkedArray:
    lists, codes = lists_from_blobs(array.dictionary, column), array.indices.to_numpy()
    if np.array_equal(codes, np.arange(len(lists))):
        return pa.chunked_array([lists])
    starts = run_starts([codes])
    ends = np.append(starts[1:], len(codes))
    run_bytes = (ends - starts) * (lists.value_lengths().to_numpy() * lists.type.value_type.bit_width // 8)[
        codes[starts]
    ]
    chunks = []
    for first, last in greedy_ranges((MAX_CHUNK_BYTES, run_bytes)):
        start, end = int(starts[first]), int(ends[last - 1])
        if last - first > 1 or run_bytes[first] <= MAX_CHUNK_BYTES:
            chunks.append(lists.take(pa.array(codes[start:end])))
            continue
        rows = max(1, int(MAX_CHUNK_BYTES * (end - start) // run_bytes[first]))
        chunk = lists.take(pa.array(np.full(rows, codes[start])))
        chunks += [chunk] * ((end - start) // rows)
        if (end - start) % rows:
            chunks.append(chunk.slice(0, (end - start) % rows))
    return pa.chunked_array(chunks, lists.type)
