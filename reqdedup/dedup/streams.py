"""Sorted streams of deduplicated batches: read in order, cut at a key, merged with one another.

A stream is an iterator of record batches whose keys never fall, within a batch and from one to the next. A `Cursor`
holds the part of a stream that nobody has taken yet: one batch, plus the rest of a request that crosses into the next.
It looks at the keys once, for their order and for the runs that a join needs. Dictionary columns are cut and gathered
by index; their values are copied only where batches are put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reqdedup.arrays.keys import KeyRuns, count_up_to, key_runs
from reqdedup.dedup.rows import concat
from reqdedup.schema import ITEM_ID, REQUEST_ID, USER_ID

REQUEST_KEY = (USER_ID, REQUEST_ID)
ROW_KEY = (USER_ID, REQUEST_ID, ITEM_ID)


def key_columns(batch: pa.RecordBatch, names: Sequence[str]) -> list[np.ndarray]:
    """The int64 key columns of a batch as numpy, without a copy."""
    return [batch.column(name).to_numpy(zero_copy_only=False) for name in names]


@dataclass(frozen=True)
class SortedRows:
    """Rows of a sorted stream, all of them of whole requests, with their key and its runs."""

    batch: pa.RecordBatch
    runs: KeyRuns

    @property
    def last_request(self) -> tuple[int, int]:
        """(user_id, request_id) of the last row."""
        user, request = self.runs.key[:2]
        return int(user[-1]), int(request[-1])

    def cut(self, start: int, end: int) -> SortedRows:
        """The rows from `start` to `end`, both of them where a request starts or the batch ends."""
        return SortedRows(self.batch.slice(start, end - start), self.runs.cut(start, end))


class Cursor:
    """What is left of one sorted stream.

    rows: read and not yet taken; together with the stream they hold every request whole.
    order: the columns that the stream is sorted by.  on: the key of `rows`, which begins with (user_id, request_id) and
        may have a column more or less than `order`.
    Raises ValueError, naming the stream, as soon as a key falls.
    """

    def __init__(
        self,
        batches: Iterable[pa.RecordBatch],
        order: Sequence[str],
        name: str,
        *,
        on: Sequence[str] | None = None,
    ) -> None:
        self.rows: SortedRows | None = None
        self._batches, self._order, self._name = iter(batches), tuple(order), name
        self._key = self._order if on is None or len(on) < len(self._order) else tuple(on)
        self._ahead: pa.RecordBatch | None = None
        self._last: tuple[int, ...] | None = None
        self._num_rows = 0

    def fill(self) -> bool:
        """Make sure that rows of whole requests are there; False at the end of the stream."""
        if self.rows is not None:
            return True
        parts: list[pa.RecordBatch] = []
        while (batch := self._ahead or self._read()) is not None:
            self._ahead = None
            if parts and _request(parts[-1], -1) != _request(batch, 0):
                self._ahead = batch
                break
            parts.append(batch)
        if parts:
            self.rows = self._sorted(concat(parts))
        return self.rows is not None

    def _read(self) -> pa.RecordBatch | None:
        return next((batch for batch in self._batches if batch.num_rows), None)

    def _sorted(self, batch: pa.RecordBatch) -> SortedRows:
        key = key_columns(batch, self._key)
        runs, row = key_runs(key, len(self._order))
        first, last = (tuple(int(column[at]) for column in key[: len(self._order)]) for at in (0, -1))
        if self._last is not None and first < self._last:
            row = 0
        if row >= 0:
            raise ValueError(
                f"{self._name}: rows must be in ({', '.join(self._order)}) order, but row {self._num_rows + row:,} "
                "of the bucket is less than the row before it; write the table again with Layout.BY_REQUEST or SORTED"
            )
        self._last = last
        self._num_rows += batch.num_rows
        return SortedRows(batch, runs)

    @property
    def last_request(self) -> tuple[int, int]:
        """(user_id, request_id) of the last row of `rows`."""
        assert self.rows is not None
        return self.rows.last_request

    def take_up_to(self, last: tuple[int, int]) -> SortedRows:
        """Cut off and return the rows whose request is at most `last`, possibly none; dictionaries stay whole."""
        assert self.rows is not None
        rows, num_rows = self.rows, self.rows.batch.num_rows
        cut = num_rows if rows.last_request <= last else count_up_to(rows.runs.key[:2], last)
        self.rows = rows.cut(cut, num_rows) if cut < num_rows else None
        return rows.cut(0, cut)

    def take(self) -> SortedRows:
        """Return all of `rows`."""
        assert self.rows is not None
        rows, self.rows = self.rows, None
        return rows


def _request(batch: pa.RecordBatch, row: int) -> tuple[int, int]:
    user, request = (column[row] for column in key_columns(batch, REQUEST_KEY))
    return int(user), int(request)


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
        parts = [part for part in (cursor.take_up_to(horizon) for cursor in live) if part.batch.num_rows]
        batch = concat([part.batch for part in parts])
        if len(parts) > 1:
            keys = key_columns(batch, order)
            batch = batch.take(pa.array(np.lexsort(keys[::-1])))
        yield batch
        live = [cursor for cursor in live if cursor.fill()]
