"""Sorted composite keys as numpy columns: runs and order. Where one side's keys are in the other: `match`.

A key is a list of int64 columns, most significant first: `[user_id, request_id]` or `[user_id, request_id, item_id]`.
Tables are sorted by such keys, so equal keys are neighbours and nothing here hashes or sorts. Ids may be any int64
(hashed strings use all 64 bits), so columns are never packed into one integer either: keys are
compared column by column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from reqdedup.arrays.ranges import row_numbers

Key = Sequence[np.ndarray]


def run_starts(key: Key) -> np.ndarray:
    """Row at which each run of equal keys starts, [N runs] int64; with the row count appended they are offsets."""
    if len(key[0]) == 0:
        return np.zeros(0, np.int64)
    new = np.ones(len(key[0]), bool)
    np.not_equal(key[0][1:], key[0][:-1], out=new[1:])
    for column in key[1:]:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def order_in_groups(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Rows in (group, value) order, [N] int64; equal ones stay in order, as of `np.lexsort((value, group))`.

    group: [N] integers from 0 on.  value: [N] int64. Where both fit into 63 bits they are sorted as one number, in a
    half of the time; with the row's number behind them, in a quarter.
    """
    if len(group) == 0:
        return np.zeros(0, np.int64)
    low = int(value.min())
    value_bits = (int(value.max()) - low).bit_length()
    if value_bits + int(group.max()).bit_length() > 63:
        return np.lexsort((value, group))
    key = np.left_shift(group, value_bits, dtype=np.int64)
    key += value
    key -= low
    row_bits = (len(group) - 1).bit_length()
    if int(key.max()).bit_length() + row_bits > 63:
        return np.argsort(key, kind="stable")
    key <<= row_bits
    key |= row_numbers(len(group))
    key.sort()
    key &= (1 << row_bits) - 1
    return key


def first_disorder(key: Key) -> int:
    """First row whose key is less than the row before it; -1 where the keys never fall."""
    falls = key[0][1:] < key[0][:-1]
    equal_so_far: np.ndarray | None = None
    for before, column in pairwise(key):
        equal = before[1:] == before[:-1]
        equal_so_far = equal if equal_so_far is None else equal_so_far & equal
        falls |= equal_so_far & (column[1:] < column[:-1])
    return int(np.argmax(falls)) + 1 if falls.any() else -1


def count_up_to(key: Key, last: Sequence[int]) -> int:
    """Rows of sorted keys that are at most `last`."""
    low, high = 0, len(key[0])
    for column, value in zip(key[:-1], last[:-1]):
        segment = column[low:high]
        low, high = (low + int(np.searchsorted(segment, value, side)) for side in ("left", "right"))
    return low + int(np.searchsorted(key[-1][low:high], last[-1], "right"))


@dataclass(frozen=True)
class KeyRuns:
    """A key and where it changes: `starts[d]` are the rows at which a run of d + 1 equal columns starts.

    key: the columns, [N] int64 each.  starts: one [N runs] int64 array per column, each within the next.
    rises: the last column rises strictly from row to row wherever the others stay, so that no key is there twice.
    """

    key: Key
    starts: Sequence[np.ndarray]
    rises: bool

    @property
    def num_rows(self) -> int:
        return len(self.key[0])

    def cut(self, start: int, end: int) -> KeyRuns:
        """Those of the rows from `start` to `end`; a run that begins before `start` begins there."""
        if start == 0 and end == self.num_rows:
            return self
        starts = []
        for rows in self.starts:
            if len(rows) == self.num_rows:
                starts.append(row_numbers(end - start))
            else:
                low, high = np.searchsorted(rows, (start, end))
                rows = rows[low:high] - start
                starts.append(np.append(0, rows) if end > start and not (len(rows) and rows[0] == 0) else rows)
        return KeyRuns([column[start:end] for column in self.key], starts, self.rises)


def key_runs(key: Key, order: int = 0) -> tuple[KeyRuns, int]:
    """The runs of a key, and the first row at which its first `order` columns fall, as
    `first_disorder` finds it; or -1.

    Columns are compared only where they change, so that the order of long runs costs next to nothing, and a last column
    that always rises, as items inside a request do, is compared once.
    """
    starts, new, falls_at, rises = [], np.zeros(len(key[0]), bool), [], False
    new[:1] = True
    for depth, column in enumerate(key):
        if depth == len(key) - 1:
            rises = bool(((column[1:] > column[:-1]) | new[1:]).all())
            if rises:
                starts.append(row_numbers(len(new)))
                continue
        outer, new = new, new.copy()
        new[1:] |= column[1:] != column[:-1]
        rows = row_numbers(len(new)) if new.all() else np.flatnonzero(new)
        starts.append(rows)
        if depth < order and len(rows) > 1:
            if len(rows) == len(new):
                falls = column[1:] < column[:-1]
                falls &= ~outer[1:]
            else:
                falls = (column[rows[1:]] < column[rows[1:] - 1]) & ~outer[rows[1:]]
            if falls.any():
                falls_at.append(int(rows[1:][np.argmax(falls)]))
    return KeyRuns(key, starts, rises), min(falls_at, default=-1)
