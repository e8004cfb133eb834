"""Merge join of two sorted streams of deduplicated batches, one bucket's worth each.

    left   | 7,70 7,70 7,71 | 9,90 ...          right  | 7,70 7,71 9,90 | ...
    piece 1: left rows up to the smaller of both last requests, right rows up to it; then the next

Both sides are read once, in order, and hold one batch each: memory follows the row group, not the bucket. Blobs are
never compared; they are copied only where a batch is cut, once each. Not done here: finding the files of a bucket
(`buckets`), several buckets at once (`join`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.keys import KeyRuns, run_starts
from reqdedup.arrays.match import Match, match_sorted, unmatched
from reqdedup.dedup.encoding import element_type
from reqdedup.dedup.rows import compact_batch, compact_blobs
from reqdedup.dedup.streams import REQUEST_KEY, ROW_KEY, Cursor, SortedRows
from reqdedup.schema import NUMBER_WIDTH_BYTES, Column, Kind

INNER, LEFT = "inner", "left"
DUPLICATES_ERROR, DUPLICATES_FIRST = "error", "first"


@dataclass
class JoinCounts:
    """What a join met; complete once its batches have been read to the end.

    left_rows: rows of the left side.  matched_rows: those whose key the right side has.
    missing_rows: those whose key it lacks (dropped by an inner join, null after a left join).
    right_rows: rows of the right side.  unused_right_keys: distinct right keys that no left row has.
    duplicate_right_keys: right rows whose key an earlier right row has; they are not joined.
    """

    left_rows: int = 0
    matched_rows: int = 0
    missing_rows: int = 0
    right_rows: int = 0
    unused_right_keys: int = 0
    duplicate_right_keys: int = 0

    def add(self, other: JoinCounts) -> None:
        for name in vars(other):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, kw_only=True)
class MergeJoin:
    """How two sorted streams are joined.

    on: (user_id, request_id) or these and item_id.  how: inner or left.
    right_columns: what the right side adds, nullable as it is to be in the result.
    duplicates: "error" raises on a right key that is there twice, "first" takes its first row in
        the order of the table.
    left_name, right_name: the tables, for errors.
    """

    on: tuple[str, ...]
    how: str
    right_columns: tuple[Column, ...]
    duplicates: str = DUPLICATES_ERROR
    left_name: str = "left"
    right_name: str = "right"

    def run(
        self, left: Iterable[pa.RecordBatch], right: Iterable[pa.RecordBatch], counts: JoinCounts
    ) -> Iterator[pa.RecordBatch]:
        """Left rows in their order with the right columns behind them; adds what it met to `counts`.

        A batch comes out for every stretch in which both sides stay within one batch of theirs; requests stay whole,
        and dictionaries hold only values that a row has.
        Raises ValueError for a side that is not in order, and for duplicate right keys unless they are allowed.
        """
        left_rows = Cursor(left, REQUEST_KEY, self.left_name, on=self.on)
        right_rows = Cursor(right, self.on, self.right_name)
        rest_of_cut = False
        while left_rows.fill():
            if right_rows.fill():
                last = min(left_rows.last_request, right_rows.last_request)
                left_piece, right_piece = left_rows.take_up_to(last), right_rows.take_up_to(last)
            else:
                left_piece, right_piece = left_rows.take(), None
            is_cut, rest_of_cut = rest_of_cut or left_rows.rows is not None, left_rows.rows is not None
            joined = self._join_piece(left_piece, right_piece, counts, is_cut=is_cut)
            if joined.num_rows:
                yield joined
        while right_rows.fill():  # no left row is left: what comes is unused, but counted and checked like the rest
            runs = right_rows.take().runs
            self._count_right(runs, counts)
            counts.unused_right_keys += len(runs.starts[-1])

    def _join_piece(
        self, left_rows: SortedRows, right_rows: SortedRows | None, counts: JoinCounts, *, is_cut: bool
    ) -> pa.RecordBatch:
        left = compact_batch(left_rows.batch) if is_cut else left_rows.batch
        right = None if right_rows is None else right_rows.batch
        if right_rows is None:
            match = Match(np.zeros(left.num_rows, bool), np.zeros(0, np.int64))
        else:
            self._count_right(right_rows.runs, counts)
            match = match_sorted(left_rows.runs, right_rows.runs)
            counts.unused_right_keys += unmatched(match.position, right_rows.runs.starts[-1])
        num_missing = left.num_rows - match.num_found
        counts.left_rows += left.num_rows
        counts.matched_rows += match.num_found
        counts.missing_rows += num_missing
        at = _Positions(match.position, None if self.how == INNER or not num_missing else match.found)
        if num_missing and self.how == INNER:
            same = {} if right is None or not at.is_slice else {name: at.slice(right.column(name)) for name in self.on}
            left = _filtered(left, match.found, same)
        added = [_gather(None if right is None else right.column(c.name), at, c) for c in self.right_columns]
        fields = [
            pa.field(column.name, array.type, nullable=column.nullable)
            for column, array in zip(self.right_columns, added)
        ]
        return pa.RecordBatch.from_arrays([*left.columns, *added], schema=pa.schema([*left.schema, *fields]))

    def _count_right(self, runs: KeyRuns, counts: JoinCounts) -> None:
        """Count right rows and duplicate keys. A match is the first row of its key."""
        key, starts, num_rows = runs.key, runs.starts[-1], runs.num_rows
        counts.right_rows += num_rows
        counts.duplicate_right_keys += num_rows - len(starts)
        if len(starts) < num_rows and self.duplicates == DUPLICATES_ERROR:
            row = int(starts[np.argmax(np.diff(starts, append=num_rows) > 1)])
            raise ValueError(
                f"{self.right_name}: every ({', '.join(self.on)}) must be there once, "
                f"found {tuple(int(column[row]) for column in key)} more than once; join on a longer key, "
                "remove the duplicates, or pass duplicates='first' to take the first row of each"
            )


def missing_blob(column: Column) -> bytes:
    """What a row without a right row gets in a blob column: an empty sequence, or a vector of zeros of its width.

    Blobs cannot be null, and a vector of any other width would break every reader of the column.
    """
    return b"" if column.kind is Kind.SEQUENCE else bytes(column.width * NUMBER_WIDTH_BYTES[column.dtype])


def _filtered(batch: pa.RecordBatch, keep: np.ndarray, known: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """The rows where `keep` holds, of which some columns are known already; dictionaries compacted."""
    bits = pa.py_buffer(np.packbits(keep, bitorder="little"))
    mask, columns = pa.BooleanArray.from_buffers(pa.bool_(), len(keep), [None, bits]), []
    for name, column in zip(batch.schema.names, batch.columns):
        kept = known[name] if name in known else column.filter(mask)
        columns.append(compact_blobs(kept) if pa.types.is_dictionary(kept.type) else kept)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


class _Positions:
    """Right row of each left row, [B] int64, -1 where there is none, and what all gathered columns ask about it.

    found: which left rows have one of `position`; None means all.
    """

    def __init__(self, position: np.ndarray, found: np.ndarray | None) -> None:
        self.rows, self.has_missing = position, found is not None
        if found is not None:
            self.rows = np.full(len(found), -1, np.int64)
            self.rows[found] = position
        steps = len(position) > 0 and int(position[-1]) - int(position[0]) == len(position) - 1
        self.is_slice = steps and found is None and bool((position[1:] > position[:-1]).all())

    def slice(self, array: pa.Array) -> pa.Array:
        """The values at the positions, which must be a slice, without a copy."""
        return array.slice(int(self.rows[0]), len(self.rows))

    @cached_property
    def indices(self) -> pa.Array:
        """For `take`, null where there is no row."""
        return pa.array(self.rows, mask=self.rows < 0 if self.has_missing else None)

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each run of one position: the rows of a request share it."""
        return run_starts([self.rows])


def _gather(array: pa.Array | None, at: _Positions, column: Column) -> pa.Array:
    """The column's values at these positions, its missing value where there is none; a dictionary of what is used."""
    if array is None or len(array) == 0:
        if not column.is_blob:
            return pa.nulls(len(at.rows), element_type(column))
        values = pa.array([missing_blob(column)] if len(at.rows) else [], pa.binary())
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(at.rows), np.int32)), values)
    if not column.is_blob:
        if at.is_slice:
            return at.slice(array)
        return pc.take(array, at.indices, boundscheck=False)
    rows = at.rows[at.starts]  # compact per request, not per row
    if at.has_missing:
        values = pa.concat_arrays([array.dictionary, pa.array([missing_blob(column)], pa.binary())])
        codes = np.where(rows < 0, len(array.dictionary), array.indices.to_numpy()[rows])
        array = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), values)
    else:
        array = array.take(pa.array(rows))
    array = compact_blobs(array)
    codes = np.repeat(array.indices.to_numpy(), np.diff(at.starts, append=len(at.rows)))
    return pa.DictionaryArray.from_arrays(pa.array(codes), array.dictionary)


def join_order(on: Sequence[str]) -> tuple[str, ...]:
    """`on` in the order of the tables. Raises ValueError for anything but the request key, with or without item_id."""
    ordered = tuple(name for name in ROW_KEY if name in on)
    if ordered not in (REQUEST_KEY, ROW_KEY) or sorted(on) != sorted(ordered):
        raise ValueError(
            f"on must be {REQUEST_KEY} or {ROW_KEY}, the order in which the tables are sorted, found {tuple(on)}"
        )
    return ordered
