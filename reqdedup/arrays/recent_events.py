"""How much a user did shortly before a request, counted from the history: one code for the backfill and for a server.

A column that is computed from histories says so (`Column.computed`), `recent_events(86400)`: a value that was stored
for an earlier request would be wrong for the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

CHUNK_EVENTS = 2**22
"""Events looked at together: bounds the working memory to about 100 MB."""

_SPEC = re.compile(r"recent_events\(([0-9.e+-]+)\)")


@dataclass(frozen=True, kw_only=True)
class RecentEvents:
    """Events of a history in the `window_s` seconds before its request; None: all, for histories without times.

    max_events: of the history's newest, which are looked at.
    """

    window_s: float | None
    max_events: int

    def count(self, events: Mapping[str, np.ndarray], request_us: int) -> int | None:
        """Of one history, columns by their names in a batch (`ts`: milliseconds); None if it has no times but should.

        request_us: time of the request [microseconds since 1970].
        """
        if self.window_s is None:
            return min(self.max_events, len(next(iter(events.values()))))
        if "ts" not in events:
            return None
        time_ms = events["ts"][-self.max_events :]
        offsets, first = np.array([0, len(time_ms)]), np.zeros(1, np.int64)
        return int(recent_events(time_ms, offsets, first, np.array([request_us]), window_s=self.window_s)[0])


def recent_events(
    time_ms: np.ndarray, offsets: np.ndarray, of_request_R: np.ndarray, request_us_R: np.ndarray, *, window_s: float
) -> np.ndarray:
    """[R] int32: events with request - window_s <= time < request, in the history of each request.

    time_ms: [T] int64, of all histories, packed.  offsets: [N + 1] of the histories.  of_request_R: [R], which history.
    request_us_R: [R] int64.  Histories follow ingestion, not time, so every event is looked at.
    """
    counts = np.zeros(len(of_request_R), np.int32)
    start, length = offsets[of_request_R], np.diff(offsets)[of_request_R]
    for chunk in _chunks(length):
        lengths = length[chunk]
        ends = np.cumsum(lengths)
        token = np.arange(ends[-1]) + np.repeat(start[chunk] - ends + lengths, lengths)
        age_us = np.repeat(request_us_R[chunk], lengths) - time_ms[token] * 1000
        recent = np.append(0, np.cumsum((age_us > 0) & (age_us <= window_s * 1e6)))
        counts[chunk] = recent[ends] - recent[ends - lengths]
    return counts


def spec_of(window_s: float) -> str:
    """What a computed column says; `window_of` is the inverse."""
    return f"recent_events({window_s!r})"


def window_of(spec: str) -> float:
    """Raises ValueError for another function."""
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise ValueError(f"recent_events(SECONDS) required as what a column is computed by, found {spec!r}")
    return float(found[1])


def _chunks(lengths: np.ndarray) -> Iterator[slice]:
    """Slices of requests of about CHUNK_EVENTS events, at least one request each."""
    total, start = np.cumsum(lengths), 0
    while start < len(lengths):
        done = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, done + CHUNK_EVENTS, "right")))
        yield slice(start, end)
        start = end
