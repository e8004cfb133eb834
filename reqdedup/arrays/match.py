"""Which right row has the key of each left row: in lockstep, gap by gap, and what is left by bisecting.

    left   5 7 8 9 | 3 4     request 0: 5 meets 5; 7 meets 8, so it has no right row, and the rest goes on one behind:
    right  5 8 9   | 3 4     8 meets 8, 9 meets 9.  Request 1: all in lockstep.

All requests take a step at once in numpy, so the work is a gather and a comparison per row while the sides agree, and
for each gap a pass over what is left of its request. `match_keys` is for keys of any order and repetition and says what
a match is; `match_sorted` is what a join asks. Nothing is hashed; ids may be any int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reqdedup.arrays.keys import Key, KeyRuns, key_runs
from reqdedup.arrays.ranges import ranges, row_numbers

MAX_PASSES = 4
"""For gaps, before the rest is bisected, which costs as much as three of them."""


@dataclass(frozen=True)
class Match:
    """The right row of every left row.

    found: which left rows have one, [N left] bool.  position: the first right row with the key of each of these.
    """

    found: np.ndarray
    position: np.ndarray

    @property
    def num_found(self) -> int:
        return len(self.position)


def match_keys(left: Key, right: Key) -> np.ndarray:
    """First row of `right` that holds each left row's key, [N left] int64, -1 where none does.

    left: any order and repetition; the work is per run of equal keys.  right: sorted.
    """
    return match_runs(key_runs(left)[0], key_runs(right)[0])


def match_sorted(left: KeyRuns, right: KeyRuns) -> Match:
    """What `match_runs` finds, as the rows that have a match and where it is."""
    position = match_runs(left, right)
    found = position >= 0
    return Match(found, position if found.all() else position[found])


def match_runs(left: KeyRuns, right: KeyRuns) -> np.ndarray:
    """`match_keys` where the runs of both sides are known."""
    # Runs of one more column at a time: `position` holds, for each left run, the right run with its prefix.
    position = np.zeros(1, np.int64)
    left_outer = right_outer = np.zeros(1, np.int64)
    in_lockstep = True
    for level, (left_inner, right_inner) in enumerate(zip(left.starts, right.starts)):
        needle, haystack = _at(left.key[level], left_inner), _at(right.key[level], right_inner)
        left_first, right_first = _first_inner(left_outer, left_inner), _first_inner(right_outer, right_inner)
        in_lockstep = in_lockstep and np.array_equal(left_first, right_first) and np.array_equal(needle, haystack)
        if in_lockstep:
            position = row_numbers(len(needle))
        else:
            start, end = right_first.take(position, mode="clip"), right_first.take(position + 1, mode="clip")
            missing = position < 0
            if missing.any():
                start[missing] = end[missing] = 0
            position = find_in_segments(needle, haystack, left_first, start, end)
        left_outer, right_outer = left_inner, right_inner
    if len(right_outer) < right.num_rows:
        position = np.where(position < 0, -1, right_outer[position]) if len(right_outer) else position
    if len(left_outer) < left.num_rows:
        position = np.repeat(position, np.diff(left_outer, append=left.num_rows))
    return position


def find_in_segments(
    needle: np.ndarray, haystack: np.ndarray, first: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Position of each needle in its segment of `haystack`, [N] int64; -1 where it is not there.

    Needles come in S stretches: those from `first[s]` to `first[s + 1]` look in `haystack[start[s]:end[s]]`, which
    rises strictly. first: [S + 1], no stretch is empty; start, end: [S].
    """
    if len(haystack) == 0 or len(needle) == 0:
        return np.full(len(needle), -1, np.int64)
    lengths = np.diff(first)
    position = np.repeat(start - first[:-1], lengths)
    position += row_numbers(len(needle))
    missed = haystack.take(position, mode="clip") != needle
    _set_beyond(missed, first[1:], lengths - (end - start))
    row = np.flatnonzero(missed)
    if len(row) == 0:
        return position
    rises = needle[1:] > needle[:-1]
    rises[first[1:-1] - 1] = True
    if not rises.all():  # in no order: what lockstep found stays, each of the others is looked for
        stretch = np.searchsorted(first, row, "right") - 1
        position[row] = _bisect(needle[row], haystack, start[stretch], end[stretch])
        return position
    live, row = _first_missed(row, first)
    stop_row, at, stop_at = first[live + 1], start[live] + row - first[live], end[live]
    for _ in range(MAX_PASSES):
        # `row` is the first of its stretch without a match, `at` the key that it met there: one of them is the gap.
        step = (at < stop_at) & (haystack.take(at, mode="clip") < needle[row])
        position[row[~step]] = -1
        row, at = row + ~step, at + step
        lengths = stop_row - row
        rows = ranges(row, lengths)
        guess = np.repeat(at - row, lengths)
        guess += rows
        missed = haystack.take(guess, mode="clip") != needle.take(rows)
        ends = np.cumsum(lengths)
        _set_beyond(missed, ends, lengths - (stop_at - at))
        position[rows] = guess
        rest = np.flatnonzero(missed)
        if len(rest) == 0:
            return position
        live, rest = _first_missed(rest, np.append(0, ends))
        skip = rest - (ends - lengths)[live]
        row, at, stop_row, stop_at = row[live] + skip, at[live] + skip, stop_row[live], stop_at[live]
        if 2 * int((stop_row - row).sum()) > len(rows):
            break  # more gaps than passes are good for
    lengths = stop_row - row
    rows = ranges(row, lengths)
    position[rows] = _bisect(needle[rows], haystack, np.repeat(at, lengths), np.repeat(stop_at, lengths))
    return position


def unmatched(position: np.ndarray, starts: np.ndarray) -> int:
    """Right keys that none of these positions points at, all of them >= 0; `starts`: the first row of each."""
    if len(starts) == 0 or (position[1:] > position[:-1]).all():
        return len(starts) - len(position)
    used = np.zeros(int(starts[-1]) + 1, bool)
    used[position] = True
    return len(starts) - int(used.sum())


def _first_missed(missed: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stretches in which rows were missed, and the first such row of each; `missed` rises, stretches as in `first`."""
    place = np.searchsorted(missed, first)
    live = np.flatnonzero(place[1:] > place[:-1])
    return live, missed[place[live]]


def _set_beyond(missed: np.ndarray, ends: np.ndarray, excess: np.ndarray) -> None:
    """Mark the last `excess` rows of each stretch, which its segment is too short for; a stretch ends at `ends`."""
    longer = np.flatnonzero(excess > 0)
    if len(longer):
        missed[ranges(ends[longer] - excess[longer], excess[longer])] = True


def _bisect(needle: np.ndarray, haystack: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Position of each needle in `haystack[low:high]`, -1 where it is not there; all of them at once."""
    if len(needle) == 0:
        return np.zeros(0, np.int64)
    end = high
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) >> 1
        less = haystack.take(middle, mode="clip") < needle
        less &= low < high
        low, high = np.where(less, middle + 1, low), np.where(less, high, middle)
    return np.where((low < end) & (haystack.take(low, mode="clip") == needle), low, -1)


def _first_inner(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Inner run with which each outer run starts, and at the end the number of inner runs."""
    if len(inner) and len(inner) == inner[-1] + 1:  # an inner run is a row
        return np.append(outer, len(inner))
    return np.append(np.searchsorted(inner, outer), len(inner))


def _at(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return column if len(rows) == len(column) else column[rows]
