"""Requests of a log that has no request ids: a user's rows up to a pause, as `ingest` makes them.

One pass over users and times before the conversion's own. Stretches of a user that lie no further apart than the gap
are one, whatever file or order their rows come in; memory is 24 bytes for each stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from reqdedup.audit.keys import hash_keys, null_keys
from reqdedup.convert.mapping import ColumnMapping
from reqdedup.logs.ids import timed_request_ids
from reqdedup.storage.foreign.source import RowSource, Stretch


class Sessions:
    """Where each session starts. count: of sessions.  gap_us: pauses up to it are inside one."""

    def __init__(self, gap_us: int) -> None:
        self.gap_us = gap_us
        self._user, self._start, self._end = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._num_waiting = 0

    @property
    def count(self) -> int:
        return len(self._user)

    def add(self, user: np.ndarray, time_us: np.ndarray) -> None:
        """Take rows: [N] uint64 hashes of their users, [N] int64 times."""
        self._waiting.append(self._merged(user, time_us, time_us))
        self._num_waiting += len(self._waiting[-1][0])
        if self._num_waiting > len(self._user):
            self.finish()

    def absorb(self, other: Sessions) -> None:
        """Take the rows that another has taken, and put together."""
        self._waiting.append((other._user, other._start, other._end))
        self._num_waiting += other.count
        if self._num_waiting > len(self._user):
            self.finish()

    def finish(self) -> None:
        """Put together what was taken; from now on `starts` knows all of it."""
        parts = [(self._user, self._start, self._end), *self._waiting]
        self._user, self._start, self._end = self._merged(*(np.concatenate(column) for column in zip(*parts)))
        self._waiting, self._num_waiting = [], 0
        self._users, self._first = np.unique(self._user, return_index=True)
        self._first = np.append(self._first, len(self._user))

    def starts(self, user: np.ndarray, time_us: np.ndarray) -> np.ndarray:
        """Start of the session of each row [us], [N] int64: the last one of its user that is not later."""
        rank = np.searchsorted(self._users, user)
        low, high = self._first[rank], self._first[rank + 1] - 1
        while np.any(low < high):
            middle = (low + high + 1) // 2
            is_later = self._start[middle] > time_us
            low, high = np.where(is_later, low, middle), np.where(is_later, middle - 1, high)
        return self._start[low]

    def _merged(
        self, user: np.ndarray, start: np.ndarray, end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.lexsort((start, user))
        user, start, end = user[order], start[order], end[order]
        is_new = np.ones(len(user), bool)
        is_new[1:] = user[1:] != user[:-1]
        # The furthest end of the user so far: ranks of ends below the user's number, so that one user ends no other's.
        ends, rank = np.unique(end, return_inverse=True)
        first_key = np.cumsum(is_new) * len(ends)
        reach = ends[np.maximum.accumulate(first_key + rank) - first_key] if len(ends) else end
        is_new[1:] |= start[1:] - reach[:-1] > self.gap_us
        first = np.flatnonzero(is_new)
        return user[first], start[first], np.maximum.reduceat(reach, first) if len(first) else end[:0]


def find_sessions(
    source: RowSource,
    mapping: ColumnMapping,
    times_us: Callable[[pa.Array], np.ndarray],
    progress: Callable[[str, int, int], None],
    part: Sequence[Stretch] | None = None,
) -> Sessions:
    """The sessions of all rows, or of a part. Raises ValueError for a null user or time, naming file and row."""
    sessions, done = Sessions(round((mapping.session_gap_s or 0) * 1e6)), 0
    for piece in source.pieces([mapping.user, mapping.time], part):
        columns = [piece.arrays[mapping.user], piece.arrays[mapping.time]]
        missing = null_keys(columns)
        if missing.any():
            raise ValueError(
                f"{piece.path} at row {piece.rows[int(np.argmax(missing))] + 1}: {mapping.user} and {mapping.time} on "
                "every row required to find sessions, found null; filter such rows, or give them values"
            )
        sessions.add(hash_keys(columns[:1]), times_us(columns[1]))
        done += piece.num_rows
        progress("sessions", done, source.num_rows)
    sessions.finish()
    return sessions


def session_ids(user: np.ndarray, starts_us: np.ndarray) -> np.ndarray:
    """Request ids of sessions, [N] int64, which rise in time for each user."""
    return timed_request_ids(user.view(np.int64), starts_us)
