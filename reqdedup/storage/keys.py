"""Sorted composite keys as numpy columns: runs, order, and finding one side's keys in the other's.

A key is a list of int64 columns, most significant first: `[user_id, request_id]` or `[user_id, request_id, item_id]`.
Tables are sorted by such keys, so equal keys are neighbours and nothing here hashes or sorts. Ids may be any int64
(hashed strings use all 64 bits), so columns are never packed into one integer either: keys are found column by column
inside the segment that the columns before it leave, first by a guess, then by bisection of all rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


def first_disorder(key: Key) -> int:
    """First row whose key is less than the row before it; -1 where the keys never fall."""
    falls = np.zeros(max(len(key[0]) - 1, 0), bool)
    equal_so_far = np.ones(len(falls), bool)
    for column in key:
        falls |= equal_so_far & (column[1:] < column[:-1])
        equal_so_far &= column[1:] == column[:-1]
    return int(np.argmax(falls)) + 1 if falls.any() else -1


def count_up_to(key: Key, last: Sequence[int]) -> int:
    """Rows of sorted keys that are at most `last`."""
    low, high = 0, len(key[0])
    for column, value in zip(key[:-1], last[:-1]):
        segment = column[low:high]
        low, high = (low + int(np.searchsorted(segment, value, side)) for side in ("left", "right"))
    return low + int(np.searchsorted(key[-1][low:high], last[-1], "right"))


def find_in_segments(
    needle: np.ndarray, haystack: np.ndarray, start: np.ndarray, end: np.ndarray, guess: np.ndarray
) -> np.ndarray:
    """Position of each needle in its own segment `haystack[start:end]`, the first one; -1 where it is not there.

    needle, start, end, guess: [N]; haystack rises strictly inside every segment. `guess` may point anywhere: where it
    is right, as when both sides hold the same keys, the bisection is skipped.
    """
    position = np.full(len(needle), -1, np.int64)
    if len(haystack) == 0 or len(needle) == 0:
        return position
    near = np.clip(guess, 0, len(haystack) - 1)
    hit = (near >= start) & (near < end) & (haystack[near] == needle)
    position[hit] = near[hit]
    rest = np.flatnonzero(~hit & (start < end))
    if len(rest) == 0:
        return position
    low, high, wanted = start[rest], end[rest], needle[rest]
    for _ in range(int((high - low).max()).bit_length()):
        middle = (low + high) >> 1
        less = haystack[np.minimum(middle, len(haystack) - 1)] < wanted
        less &= low < high
        low, high = np.where(less, middle + 1, low), np.where(less, high, middle)
    found = (low < end[rest]) & (haystack[np.minimum(low, len(haystack) - 1)] == wanted)
    position[rest[found]] = low[found]
    return position


def match_keys(left: Key, right: Key) -> np.ndarray:
    """Row of `right` that holds each left row's key, [N left] int64, -1 where none does.

    left: any order and repetition; the work is per run of equal keys.  right: sorted, every key once.
    """
    run_of_key = run_starts(left)
    run_lengths = np.diff(np.append(run_of_key, len(left[0])))
    return np.repeat(_match_runs([column[run_of_key] for column in left], right), run_lengths)


def _match_runs(left: Key, right: Key) -> np.ndarray:
    if len(left[0]) == len(right[0]) and all(np.array_equal(a, b) for a, b in zip(left, right)):
        return np.arange(len(right[0]), dtype=np.int64)
    # Runs of the left prefix, and for each the rows of `right` that hold it, [start, end): at first everything.
    runs = np.zeros(1, np.int64)
    start, end = np.zeros(1, np.int64), np.full(1, len(right[0]), np.int64)
    for level in range(1, len(left) + 1):
        inner, right_runs = run_starts(left[:level]), run_starts(right[:level])
        outer = np.searchsorted(runs, inner, "right") - 1
        # Segments in runs of the right prefix; the guess: the n-th run of one side is the n-th of the other.
        segment_start = np.searchsorted(right_runs, start)[outer]
        segment_end = np.searchsorted(right_runs, end)[outer]
        guess = segment_start + np.arange(len(inner)) - np.searchsorted(inner, runs)[outer]
        position = find_in_segments(
            left[level - 1][inner], right[level - 1][right_runs], segment_start, segment_end, guess
        )
        right_offsets = np.append(right_runs, len(right[0]))
        runs, missing = inner, position < 0
        start = np.where(missing, 0, right_offsets[position])
        end = np.where(missing, 0, right_offsets[position + 1])
    return np.where(missing, -1, start)


def unmatched(position: np.ndarray, num_right: int) -> int:
    """Right rows that no position points at."""
    used = np.zeros(num_right, bool)
    used[position[position >= 0]] = True
    return num_right - int(used.sum())
