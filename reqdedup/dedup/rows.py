"""Rows of deduplicated batches taken, compacted and put together; dictionaries hold what a row has,
and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from reqdedup.arrays.keys import run_starts
from reqdedup.arrays.ranges import offsets_of, row_numbers


def compact_blobs(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same rows with only the values they use, in order of first use; what a slice or filter needs before it moves.

    An array whose values are all used, in that order, comes back as it is.
    """
    starts, codes = _code_runs(array)
    if np.array_equal(codes, row_numbers(len(array.dictionary))):
        return array
    used, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    if len(used) == len(array.dictionary) and np.all(np.diff(first) > 0):
        return array
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(used), np.int32)
    rank[order] = np.arange(len(used), dtype=np.int32)
    values = array.dictionary.take(pa.array(used[order]))
    indices = np.repeat(rank[inverse], np.diff(np.append(starts, len(array))))
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), values)


def _code_runs(array: pa.DictionaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of rows with one value starts, [N runs] int64, and its code: rows of a request are neighbours, so
    that there are far fewer runs than rows."""
    codes = array.indices.to_numpy()
    if len(codes) and len(array.dictionary) == 0:
        raise ValueError(f"{len(codes)} rows point into an empty dictionary; the column cannot be null")
    starts = run_starts([codes])
    return starts, codes[starts]


def compact_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with every dictionary compacted."""
    columns = [compact_blobs(c) if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def each_value_once(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with every value of a dictionary there once, by value, in the order in which the rows first use it.

    What a file is given: for a value that stands in a dictionary twice, Parquet's writer makes room twice and leaves
    the second as memory was.
    """
    columns = []
    for column in compact_batch(batch).columns:
        if pa.types.is_dictionary(column.type):
            by_value = column.dictionary.dictionary_encode()
            codes = by_value.indices.to_numpy()[column.indices.to_numpy()]
            column = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), by_value.dictionary)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def take_rows(batch: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """These rows of a deduplicated batch (positions or a boolean mask), dictionaries compacted."""
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    if len(rows) == batch.num_rows and np.array_equal(rows, np.arange(len(rows))):
        return compact_batch(batch)
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            indices = column.indices.take(pa.array(rows))
            columns.append(compact_blobs(pa.DictionaryArray.from_arrays(indices, column.dictionary)))
        else:
            columns.append(column.take(pa.array(rows)))
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of several; dictionaries, without what no row has, are set behind one another. Blobs are not
    compared."""
    if len(batches) == 1:
        return batches[0]
    schema, columns = batches[0].schema, []
    for position, field in enumerate(schema):
        arrays = [batch.column(position) for batch in batches]
        if not pa.types.is_dictionary(field.type):
            columns.append(pa.concat_arrays(arrays))
            continue
        arrays = [array if _uses_all(array) else compact_blobs(array) for array in arrays]
        first = offsets_of(np.array([len(array.dictionary) for array in arrays])).astype(np.int32)
        indices = [array.indices.to_numpy() + start for array, start in zip(arrays, first)]
        columns.append(
            pa.DictionaryArray.from_arrays(
                pa.array(np.concatenate(indices), pa.int32()), pa.concat_arrays([array.dictionary for array in arrays])
            )
        )
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _uses_all(array: pa.DictionaryArray) -> bool:
    is_used = np.zeros(len(array.dictionary), bool)
    is_used[_code_runs(array)[1]] = True
    return bool(is_used.all())


def concat_by_value(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of several; values that are equal become one, which takes a look at each."""
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    return table.to_batches()[0]
