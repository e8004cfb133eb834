"""Which part of a user's timeline a request sees: anchored windows over packed events.

A timeline is a user's events in the order of ingestion, numbered from 0. A request sees the events before its
`history_end`; where that is more than `max_history`, the window starts at a multiple of `stride`, so that successive
requests of a user mostly start at the same event and one context pass can serve them all. The price is length: a cut
window holds `max_history - stride / 2` events on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reqdedup.arrays.ranges import ranges

_LONG_WINDOW = 32
"""Elements from which a slice per window is cheaper than an index per element."""


def default_stride(max_history: int) -> int:
    """A quarter of the longest history: the mean cut window is 7/8 of it, a start is kept for `stride` new events."""
    return max(1, max_history // 4)


def anchored_start(history_end: np.ndarray, max_history: int, stride: int) -> np.ndarray:
    """First event of each request's window, absolute index in the timeline; any shape, int64.

    start = stride * ceil(max(0, history_end - max_history) / stride), with 1 <= stride <= max_history: the window is
    never longer than max_history and never empty where the timeline is not.
    """
    if not 1 <= stride <= max_history:
        raise ValueError(f"anchored windows: 1 <= stride <= max_history = {max_history} required, found {stride}")
    excess = np.maximum(0, np.asarray(history_end, np.int64) - max_history)
    return stride * -(-excess // stride)


@dataclass(frozen=True, kw_only=True)
class HistoryCut:
    """The longest history [events] that a model is given, cut by anchored windows.

    A longer one starts at stride * ceil(max(0, history_end - max_events) / stride), so that requests of one user keep
    starting at the same event; stride 1 keeps the last max_events, 0 means a quarter of max_events. Without a
    history_end column the history itself counts as the whole timeline.
    """

    max_events: int
    stride: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.stride <= self.max_events or self.max_events < 1:
            raise ValueError(
                "history cut: max_events of at least 1 and 0 <= stride <= max_events required, "
                f"found {self.max_events} events, stride {self.stride}"
            )

    @property
    def step(self) -> int:
        """Events by which the start moves: the stride, or its default."""
        return self.stride or default_stride(self.max_events)

    def start_of(self, history_end: np.ndarray) -> np.ndarray:
        """First event of each window, counted in the user's timeline."""
        return anchored_start(history_end, self.max_events, self.step)

    def skipped(self, length: np.ndarray, history_end: np.ndarray) -> np.ndarray:
        """How many of a history's oldest events are cut off; any shape.

        length: events of each history, the last of which is number history_end - 1 of the timeline.
        """
        skipped = self.start_of(history_end) - (history_end - length)
        return np.clip(skipped, np.maximum(0, length - self.max_events), length)

    def start_of_one(self, history_end: int) -> int:
        """`start_of` of one window."""
        return -(-max(0, history_end - self.max_events) // self.step) * self.step

    def skipped_of_one(self, length: int, history_end: int) -> int:
        """`skipped` of one history."""
        skipped = self.start_of_one(history_end) - (history_end - length)
        return min(max(skipped, 0, length - self.max_events), length)


def gather_windows(packed: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The windows packed[start : start + length], packed again: [sum(lengths)].

    Concatenating slices copies long windows at memory speed, several times faster than an index per element; for
    windows of a few elements it is the other way round.
    """
    if np.sum(lengths) < _LONG_WINDOW * len(starts):
        return packed[ranges(starts, lengths)]
    if len(starts) == 0:
        return packed[:0]
    ends = np.asarray(starts) + np.asarray(lengths)
    return np.concatenate([packed[a:b] for a, b in zip(np.asarray(starts).tolist(), ends.tolist())])
