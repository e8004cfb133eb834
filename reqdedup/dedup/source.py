"""What the stages read from: anything that yields deduplicated batches, as often as it is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from reqdedup.schema import EngagementSchema


@runtime_checkable
class BatchSource(Protocol):
    """A table, a join or a sample, read as deduplicated batches (reqdedup.dedup.encoding).

    One with `fingerprint() -> dict[str, str]` can be resumed in the middle: named parts that are equal in another process if
    the same rows come in the same order, and not otherwise.
    """

    @property
    def schema(self) -> EngagementSchema:
        """The columns of the batches."""
        ...

    def batches(
        self, columns: Sequence[str] | None = None, users: np.ndarray | pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """A fresh pass over all rows.

        columns: exactly these, in schema order; None means all.  users: only the rows of these user ids.
        """
        ...


def fingerprint_of(source: object) -> dict[str, str] | None:
    """The fingerprint of a source, None if it has none."""
    fingerprint = getattr(source, "fingerprint", None)
    return None if fingerprint is None else fingerprint()


def digest(*parts: object) -> str:
    """128-bit hash of plain values (as JSON) and arrays (as their bytes)."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()


def compact_blobs(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same rows with only the values they use, in order of first use; what a slice or filter needs before it moves.

    An array whose values are all used, in that order, comes back as it is.
    """
    codes = array.indices.to_numpy()
    if len(codes) and len(array.dictionary) == 0:
        raise ValueError(f"{len(codes)} rows point into an empty dictionary; the column cannot be null")
    if len(codes) and codes[0] == 0 and codes[-1] == len(array.dictionary) - 1:
        steps = np.diff(codes)
        if np.all((steps == 0) | (steps == 1)):  # the rows of each request are neighbours: nothing to sort
            return array
    used, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    if len(used) == len(array.dictionary) and np.all(np.diff(first) > 0):
        return array
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(used), np.int32)
    rank[order] = np.arange(len(used), dtype=np.int32)
    values = array.dictionary.take(pa.array(used[order]))
    return pa.DictionaryArray.from_arrays(pa.array(rank[inverse], pa.int32()), values)


def compact_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with every dictionary compacted."""
    columns = [compact_blobs(c) if pa.types.is_dictionary(c.type) else c for c in batch.columns]
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
