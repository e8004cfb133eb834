"""Sorted streams of deduplicated batches: read in order, cut at a key, merged with one another.

A stream is an iterator of record batches whose keys never fall, within a batch and from one to the next. A `Cursor`
holds the part of a stream that nobody has taken yet: one batch, plus the rest of a request that crosses into the next.
Dictionary columns are cut and gathered by index; their values are copied only where batches are put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from reqdedup.schema import ITEM_ID, REQUEST_ID, USER_ID
from reqdedup.storage.keys import count_up_to, first_disorder
from reqdedup.storage.source import compact_blobs

REQUEST_KEY = (USER_ID, REQUEST_ID)
ROW_KEY = (USER_ID, REQUEST_ID, ITEM_ID)


def key_columns(batch: pa.RecordBatch, names: Sequence[str]) -> list[np.ndarray]:
    """The int64 key columns of a batch as numpy, without a copy."""
    return [batch.column(name).to_numpy(zero_copy_only=False) for name in names]


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of several; dictionaries are compacted and set behind one another, blobs are not compared."""
    if len(batches) == 1:
        return batches[0]
    schema, columns = batches[0].schema, []
    for position, field in enumerate(schema):
        arrays = [batch.column(position) for batch in batches]
        if not pa.types.is_dictionary(field.type):
            columns.append(pa.concat_arrays(arrays))
            continue
        arrays = [compact_blobs(array) for array in arrays]
        first = np.cumsum([0] + [len(array.dictionary) for array in arrays])
        indices = [array.indices.to_numpy(zero_copy_only=False) + start for array, start in zip(arrays, first)]
        columns.append(
            pa.DictionaryArray.from_arrays(
                pa.array(np.concatenate(indices).astype(np.int32)),
                pa.concat_arrays([array.dictionary for array in arrays]),
            )
        )
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class Cursor:
    """What is left of one sorted stream.

    batch: rows read and not yet taken; together with the stream they hold every request whole.
    Raises ValueError, naming the stream, as soon as a key falls.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], order: Sequence[str], name: str) -> None:
        self.batch: pa.RecordBatch | None = None
        self._batches, self._order, self._name = iter(batches), tuple(order), name
        self._ahead: pa.RecordBatch | None = None
        self._last: tuple[int, ...] | None = None
        self._num_rows = 0

    def fill(self) -> bool:
        """Make sure that a batch of whole requests is there; False at the end of the stream."""
        if self.batch is not None:
            return True
        parts: list[pa.RecordBatch] = []
        while (batch := self._ahead or self._read()) is not None:
            self._ahead = None
            if parts and self._request(parts[-1], -1) != self._request(batch, 0):
                self._ahead = batch
                break
            parts.append(batch)
        if parts:
            self.batch = concat(parts)
        return self.batch is not None

    def _read(self) -> pa.RecordBatch | None:
        for batch in self._batches:
            if batch.num_rows == 0:
                continue
            key = key_columns(batch, self._order)
            first = tuple(int(column[0]) for column in key)
            row = 0 if self._last is not None and first < self._last else first_disorder(key)
            if row >= 0:
                raise ValueError(
                    f"{self._name}: rows must be in ({', '.join(self._order)}) order, but row {self._num_rows + row:,} "
                    "of the bucket is less than the row before it; write the table again with Layout.BY_REQUEST or SORTED"
                )
            self._last = tuple(int(column[-1]) for column in key)
            self._num_rows += batch.num_rows
            return batch
        return None

    @staticmethod
    def _request(batch: pa.RecordBatch, row: int) -> tuple[int, int]:
        user, request = (batch.column(name) for name in REQUEST_KEY)
        row = row % batch.num_rows
        return user[row].as_py(), request[row].as_py()

    @property
    def last_request(self) -> tuple[int, int]:
        """(user_id, request_id) of the last row of `batch`."""
        assert self.batch is not None
        return self._request(self.batch, -1)

    def take_up_to(self, last: tuple[int, int]) -> pa.RecordBatch:
        """Cut off and return the rows whose request is at most `last`, possibly none; dictionaries stay whole."""
        assert self.batch is not None
        batch = self.batch
        cut = batch.num_rows if self.last_request <= last else count_up_to(key_columns(batch, REQUEST_KEY), last)
        self.batch = batch.slice(cut) if cut < batch.num_rows else None
        return batch.slice(0, cut)

    def take(self) -> pa.RecordBatch:
        """Return all of `batch`."""
        assert self.batch is not None
        batch, self.batch = self.batch, None
        return batch


def merge_streams(
    streams: Sequence[Iterable[pa.RecordBatch]], order: Sequence[str], name: str
) -> Iterator[pa.RecordBatch]:
    """One sorted stream of several, as where a bucket has a file per appended day; memory: one batch of each.

    Rows with equal keys stay in the order of the streams. One stream passes through as it is.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    live = [cursor for cursor in (Cursor(stream, order, name) for stream in streams) if cursor.fill()]
    while live:
        horizon = min(cursor.last_request for cursor in live)
        parts = [part for part in (cursor.take_up_to(horizon) for cursor in live) if part.num_rows]
        batch = concat(parts)
        if len(parts) > 1:
            keys = key_columns(batch, order)
            batch = batch.take(pa.array(np.lexsort(keys[::-1])))
        yield batch
        live = [cursor for cursor in live if cursor.fill()]
