"""Timelines and request features as a server reads them: one get per request, never the lake.

A timeline is a user's events in the order of arrival, numbered from 0; a correction starts a new version of it. What a
request sees is `timeline[start : end]`, with `end` the request's `history_end`, so that what arrived later is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class TimelineEnd:
    """Where a user's timeline stands: its version, and the number of its events, which the next event gets."""

    version: int
    end: int


@dataclass(frozen=True)
class Window:
    """Events `start` to `end` of one version of a user's timeline.

    columns: sequence columns [end - start] each, oldest first, named as in `RequestBatch.history` (`item_id`, ...).
    """

    columns: Mapping[str, np.ndarray]
    start: int
    end: int
    version: int


class StoreUnavailableError(RuntimeError):
    """The store could not be asked in time: nothing is known about the user."""


class Store(Protocol):
    """What serving asks of any store. Safe to call from several threads; a get is one consistent moment."""

    def append(self, user_id: int, events: Mapping[str, np.ndarray], *, key: str) -> TimelineEnd:
        """Add events at the end of the user's timeline; a `key` that was appended before changes nothing and returns
        what it returned then. Raises ValueError if the columns are not the store's."""
        ...

    def end(self, user_id: int) -> TimelineEnd | None:
        """None for a user without a timeline."""
        ...

    def window(
        self,
        user_id: int,
        columns: Sequence[str],
        *,
        start_of: Callable[[int], int],
        at: int | None = None,
        version: int | None = None,
    ) -> Window | None:
        """The events before number `at` (None: all) from `start_of(end)` on; None for a user without a timeline.

        version: of the timeline, None for the newest. Raises ValueError if the timeline has no such version or is
        shorter than `at`, StoreUnavailableError if the store does not answer.
        """
        ...

    def request_features(self, user_id: int, names: Sequence[str]) -> dict[str, Any]:
        """The user's newest values of these request-level columns, those of side tables included; what the store lacks
        is left out."""
        ...
