"""Sorted composite keys as numpy columns: runs, order, and finding one side's keys in the other's.

A key is a list of int64 columns, most significant first: `[user_id, request_id]` or `[user_id, request_id, item_id]`.
Tables are sorted by such keys, so equal keys are neighbours and nothing here hashes or sorts. Ids may be any int64
(hashed strings use all 64 bits), so columns are never packed into one integer either: keys are found column by column
inside the segment that the columns before leave, first by a guess, then by bisecting for all rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Key = Sequence[np.ndarray]

MAX_ROW_NUMBERS = 2**20
"""Row numbers that are kept: those of the batches of a join, not those of a whole table."""

_ROW_NUMBERS = np.zeros(0, np.int64)


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

    group: [N] int64 from 0 on.  value: [N] int64. Where both fit into 63 bits they are sorted as one number, in a fifth
    of the time.
    """
    if len(group) == 0:
        return np.zeros(0, np.int64)
    low = int(value.min())
    value_bits = (int(value.max()) - low).bit_length()
    if value_bits + int(group.max()).bit_length() > 63:
        return np.lexsort((value, group))
    return np.argsort((group << value_bits) | (value - low), kind="stable")


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


def prefix_runs(key: Key) -> list[np.ndarray]:
    """Row at which each run of an equal prefix starts, for the prefixes of 1, 2, ... columns; each is in the next."""
    starts, new = [], np.zeros(len(key[0]), bool)
    new[:1] = True
    for column in key:
        new[1:] |= column[1:] != column[:-1]
        starts.append(row_numbers(len(new)) if new.all() else np.flatnonzero(new))
    return starts


def row_numbers(num_rows: int) -> np.ndarray:
    """0 to num_rows - 1, [N] int64; read-only, and the same memory again and again."""
    global _ROW_NUMBERS
    if num_rows > len(_ROW_NUMBERS):
        if num_rows > MAX_ROW_NUMBERS:
            return np.arange(num_rows)
        numbers = np.arange(max(num_rows, 2 * len(_ROW_NUMBERS)))
        numbers.flags.writeable = False
        _ROW_NUMBERS = numbers
    return _ROW_NUMBERS[:num_rows]


def find_in_segments(
    needle: np.ndarray, haystack: np.ndarray, first: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Position of each needle in its segment of `haystack`, [N] int64; -1 where it is not there.

    Needles come in S stretches: those from `first[s]` to `first[s + 1]` look in `haystack[start[s]:end[s]]`, which rises
    strictly. first: [S + 1]; start, end: [S]. The guess is that the n-th needle of a stretch is the n-th of its segment,
    then, where one side has more keys, that it has one more before this; the rest is bisected, all at once.
    """
    if len(haystack) == 0 or len(needle) == 0:
        return np.full(len(needle), -1, np.int64)
    lengths = np.diff(first)
    position = np.repeat(start - first[:-1], lengths)
    position += row_numbers(len(needle))
    hit = haystack.take(position, mode="clip") == needle
    if (lengths > end - start).any():  # else no guess leaves its segment
        hit &= position < np.repeat(end, lengths)
    rest = np.flatnonzero(~hit)
    if len(rest) == 0:
        return position
    stretch = np.repeat(row_numbers(len(lengths)), lengths)[rest]
    low, high, wanted = start[stretch], end[stretch], needle[rest]
    near = position[rest] + np.sign(end - start - lengths)[stretch]
    hit = (haystack.take(near, mode="clip") == wanted) & (near >= low) & (near < high)
    position[rest[hit]] = near[hit]
    rest = rest[~hit]
    if len(rest) == 0:
        return position
    low, high, wanted = low[~hit], high[~hit], wanted[~hit]
    last = high - 1
    for _ in range(int((high - low).max()).bit_length()):
        middle = (low + high) >> 1
        less = haystack.take(middle, mode="clip") < wanted
        less &= low < high
        low, high = np.where(less, middle + 1, low), np.where(less, high, middle)
    found = (low <= last) & (haystack.take(low, mode="clip") == wanted)
    position[rest] = np.where(found, low, -1)
    return position


def match_keys(left: Key, right: Key) -> np.ndarray:
    """First row of `right` that holds each left row's key, [N left] int64, -1 where none does.

    left: any order and repetition; the work is per run of equal keys.  right: sorted.
    """
    return match_runs(left, prefix_runs(left), right, prefix_runs(right))


def match_runs(left: Key, left_runs: Sequence[np.ndarray], right: Key, right_runs: Sequence[np.ndarray]) -> np.ndarray:
    """`match_keys` where the runs of all prefixes of both sides are known."""
    # Runs of one more column at a time: `position` holds, for each left run, the right run with its prefix.
    position = np.zeros(1, np.int64)
    left_outer = right_outer = np.zeros(1, np.int64)
    for level, (left_inner, right_inner) in enumerate(zip(left_runs, right_runs)):
        left_first, right_first = _first_inner(left_outer, left_inner), _first_inner(right_outer, right_inner)
        missing = position < 0
        position = find_in_segments(
            _at(left[level], left_inner),
            _at(right[level], right_inner),
            left_first,
            np.where(missing, 0, right_first[position]),
            np.where(missing, 0, right_first[position + 1]),
        )
        left_outer, right_outer = left_inner, right_inner
    if len(right_outer) < len(right[0]):
        position = np.where(position < 0, -1, right_outer[position]) if len(right_outer) else position
    if len(left_outer) < len(left[0]):
        position = np.repeat(position, np.diff(left_outer, append=len(left[0])))
    return position


def _first_inner(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Inner run with which each outer run starts, and at the end the number of inner runs."""
    if len(inner) and len(inner) == inner[-1] + 1:  # an inner run is a row
        return np.append(outer, len(inner))
    return np.append(np.searchsorted(inner, outer), len(inner))


def _at(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return column if len(rows) == len(column) else column[rows]


def unmatched(position: np.ndarray, starts: np.ndarray) -> int:
    """Right keys that none of these positions points at, all of them >= 0; `starts`: the first row of each."""
    if len(starts) == 0 or (position[1:] > position[:-1]).all():
        return len(starts) - len(position)
    used = np.zeros(int(starts[-1]) + 1, bool)
    used[position] = True
    return len(starts) - int(used.sum())
