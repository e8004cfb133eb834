"""The window of a sequence that a request sees: the one place where it is cut. `naive.sequence_at` is the definition.

A request sees what had arrived before it. In the timeline a user's arrivals never fall, so that one binary search per
request finds the end. The events of a sequence are numbered by its rank column: its last N before an end are neighbours
among them, and those that are too old lie before the others.

    arrival_ts     1  2  5  7        request at 6: history_end 3
    rank_clicked   1  1  2  3        the clicks of it: 2, the last 1 of them: number 1 among the clicks

`cut_windows` does it for many requests of a bucket at once. `OnlineStore.fetch` has one user, whose events lie in two
views, in the time that a few calls of numpy take: it searches by itself, between the same limits (`window_limits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import pyarrow as pa

from reqdedup.arrays.ranges import offsets_of
from reqdedup.schema import HISTORY_END
from reqdedup.sequences.columns import numbers_of
from reqdedup.sequences.definition import ARRIVAL_TS, USER, SequenceDefinition
from reqdedup.sequences.tables import INDEX
from reqdedup.sequences.timeline import Timeline, rank_steps

N = TypeVar("N", int, np.ndarray)


@dataclass(frozen=True, kw_only=True)
class BucketWindows:
    """What R requests of one bucket see of a sequence.

    events: of the sequence, all of the bucket's, a user's side by side; the definition's columns.
    start_R, length_R: each request's window of them.  seen_R: how many of the sequence's events were before it, those
    that the window leaves out counted.
    """

    events: pa.Table
    start_R: np.ndarray
    length_R: np.ndarray
    seen_R: np.ndarray

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The events as arrays; see `numbers_of`, which refuses text."""
        return {name: numbers_of(self.events.column(name)) for name in self.events.column_names}


def window_limits(definition: SequenceDefinition, seen: N, at_us: N, kept_from_us: int) -> tuple[N, N | int]:
    """Where the window of a request begins: at the later of number `first` of the sequence's events, from 0 on, and the
    first of them that arrived at `oldest_us` or after; either may be below 0. For one request, or arrays of several.

    seen: how many of the sequence's events were before the request.  at_us: its time, microseconds since 1970.
    kept_from_us: see `TimelineState`.
    """
    first = seen - definition.last_n
    if definition.window_us is None:
        return first, kept_from_us
    oldest_us = at_us - definition.window_us
    return first, np.maximum(oldest_us, kept_from_us) if kept_from_us else oldest_us


def window_columns(timeline: Timeline, definition: SequenceDefinition) -> list[str]:
    """What `cut_windows` needs of a bucket."""
    # A sequence that has the timeline for itself has all its events: their numbers are its ranks.
    rank = [] if len(timeline.definitions) == 1 else [definition.rank_column]
    return [ARRIVAL_TS, *rank, *definition.columns]


def cut_windows(
    events: pa.Table,
    definition: SequenceDefinition,
    user_R: np.ndarray,
    at_us_R: np.ndarray,
    *,
    kept_from_us: int,
    seen_R: np.ndarray | None = None,
) -> BucketWindows:
    """The windows of requests over the events of their bucket (`Timeline.read` of `window_columns`).

    at_us_R: times of the requests, microseconds since 1970.  seen_R: how many of the sequence's events were before
    each, if that is known; else it is searched.  kept_from_us: see `TimelineState`.
    Raises ValueError if a user has fewer events than a request saw: a window would be of other users' events.
    """
    user_T, arrival_T = events.column(USER).to_numpy(), numbers_of(events.column(ARRIVAL_TS))
    has_rank = definition.rank_column in events.column_names
    rank_T = numbers_of(events.column(definition.rank_column)) if has_rank else numbers_of(events.column(INDEX)) + 1
    start_R, end_R = segments(user_T, user_R)
    # Events of the sequence lie packed, those of a user together: number `rank - 1` of the user's.
    is_member_T = rank_steps(user_T, rank_T) == 1
    before_T1 = offsets_of(is_member_T)
    first_member_R = before_T1[start_R]
    if seen_R is not None:
        _check_seen(seen_R, before_T1[end_R] - first_member_R, user_R)
    else:
        num_R = count_below(arrival_T, start_R, end_R, at_us_R)
        last_seen_R = np.where(num_R > 0, start_R + num_R - 1, 0)
        seen_R = np.where(num_R > 0, rank_T[last_seen_R], 0) if len(rank_T) else num_R
    first_R, oldest_us_R = window_limits(definition, seen_R, at_us_R, kept_from_us)
    skipped_R = np.maximum(0, first_R)
    if np.any(oldest_us_R):
        limit_R = np.broadcast_to(oldest_us_R, user_R.shape)
        old_R = count_below(arrival_T[is_member_T], first_member_R, first_member_R + seen_R, limit_R)
        skipped_R = np.maximum(skipped_R, old_R)
    members = events.select(definition.columns)
    return BucketWindows(
        events=members if is_member_T.all() else members.filter(pa.array(is_member_T)),
        start_R=first_member_R + skipped_R,
        length_R=seen_R - skipped_R,
        seen_R=seen_R,
    )


def _check_seen(seen_R: np.ndarray, num_R: np.ndarray, user_R: np.ndarray) -> None:
    """seen_R: of the sequence's events before each request.  num_R: of the user's that there are."""
    beyond_R = np.flatnonzero(seen_R > num_R)
    if len(beyond_R):
        one = beyond_R[0]
        raise ValueError(
            f"{HISTORY_END} of user {user_R[one]}: at most {num_R[one]}, the user's events of the sequence, required, "
            f"found {seen_R[one]}; the row is of another timeline, or of a user who was deleted from this one"
        )


def count_below(values: np.ndarray, start: np.ndarray, end: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """How many of `values[start:end]`, which rise, are below the limit, for every one of [N] segments at once."""
    low, high = start.astype(np.int64), end.astype(np.int64)
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) >> 1
        is_below = (middle < high) & (values[np.minimum(middle, len(values) - 1)] < limit)
        low, high = np.where(is_below, middle + 1, low), np.where(is_below, high, middle)
    return low - start


def segments(user_T: np.ndarray, user_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each request's user begins and ends in the sorted users of the events."""
    return np.searchsorted(user_T, user_R, "left"), np.searchsorted(user_T, user_R, "right")
