"""Timelines and request features as a server reads them: one get per request, never the lake.

A timeline is a user's events in the order of arrival, numbered from 0; a correction starts a new version of it. What a
request sees is `timeline[start : end]`, with `end` the request's `history_end`, so that what arrived later is not seen.

Behind the protocol stand `SqliteStore` (embedded, the default) and `ValkeyStore`, which are filled from request tables
(`filling`) or from a timeline (`sequence_store.fill_from_timeline`); one suite of tests holds for both. So does
`SequenceStore`, a sequence of an online store in its own process, which nobody appends to or fills.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
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


@dataclass(frozen=True, kw_only=True)
class UserRead:
    """What a store has of a user, read at one moment.

    window: None for a user without a timeline.
    features: values of the request-level columns that were asked for, as of `Store.request_features`.
    as_of_us: when these were true, the `as_of_us` of the last fill; None if there are none.
    failure: why nothing is known of the user; None if the store has answered.
    """

    window: Window | None = None
    features: Mapping[str, Any] = field(default_factory=dict)
    as_of_us: int | None = None
    failure: StoreUnavailableError | None = None


@dataclass(frozen=True, kw_only=True)
class UserRecord:
    """What a table knows about a user.

    timelines: version -> (number of the first event, columns of the events from it on).
    features: request-level columns of the newest request, plain values; None for a null.
    """

    user_id: int
    timelines: Mapping[int, tuple[int, Mapping[str, np.ndarray]]]
    features: Mapping[str, Any]


@dataclass(kw_only=True)
class FillReport:
    """What a fill did. num_new, num_changed, num_same: users of the table, by what the store had of them.

    num_deleted: users that an earlier fill brought and that are no longer in the table.
    num_withheld: users of the table who were deleted after it was made.
    num_contradicted: timelines that were replaced since the store had other events under the same numbers.
    num_events_dropped: events of those that the table does not have.
    """

    num_new: int = 0
    num_changed: int = 0
    num_same: int = 0
    num_deleted: int = 0
    num_withheld: int = 0
    num_contradicted: int = 0
    num_events_dropped: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_users(self) -> int:
        return self.num_new + self.num_changed + self.num_same

    def counts(self) -> dict[str, int]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name.startswith("num_")}


def events_digest(columns: Mapping[str, np.ndarray]) -> bytes:
    """Of a window's events: equal for equal columns, dtypes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(columns):
        array = np.ascontiguousarray(columns[name])
        digest.update(f"{name} {array.dtype.str} {len(array)} ".encode())
        digest.update(array.data)
    return digest.digest()


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class WindowError(ValueError):
    """A window that a store does not have. argument: `at` or `version`, with what was required and found."""

    def __init__(self, argument: str, required: str, found: str) -> None:
        super().__init__(f"window: {argument}: {required} required, found {found}")
        self.argument, self.required, self.found = argument, required, found


class KeyTakenError(ValueError):
    """A key of an append that was another user's before."""


class StoreUnavailableError(RuntimeError):
    """The store could not be asked in time: nothing is known about the user. reason: what was required and found,
    without the store's place, which is nothing for callers of a server.  place, detail: for the log, empty if unknown.
    """

    def __init__(self, reason: str, *, place: str = "", detail: str = "") -> None:
        super().__init__((f"store {place}: " if place else "") + reason + (f": {detail}" if detail else ""))
        self.reason = reason


class Store(Protocol):
    """What serving asks of any store. Safe to call from several threads; a get is one consistent moment.

    Every call raises StoreUnavailableError if the store does not answer within its `timeout_s`.
    """

    @property
    def columns(self) -> Mapping[str, str]:
        """The sequence columns of every event, in order, and their dtypes (`int64`, ...)."""
        ...

    def append(
        self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, stands: TimelineEnd | None = None
    ) -> TimelineEnd:
        """Add events at the end of the user's timeline; a `key` that was appended before changes nothing and returns
        what it returned then.

        stands: version of the timeline and number of the first of these events, if the caller knows them: those that
        the timeline has already are left out, and one that begins now is of this version.
        Raises ValueError if the columns are not the store's, the key was another user's, or the timeline is of another
        version or lacks events before these.
        """
        ...

    def correct(self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, start: int = 0) -> TimelineEnd:
        """Start a new version of the timeline that holds these events, the first of them numbered `start`.

        Earlier versions stay readable as they were. `key`, errors: as of `append`.
        """
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

        The window starts later than `start_of(end)` if the store was filled with later events alone.
        version: of the timeline, None for the newest. Raises ValueError if the store has no such column, if the
        timeline has no such version, is shorter than `at`, or is held from a later event on.
        """
        ...

    def fetch(
        self,
        user_id: int,
        columns: Sequence[str],
        names: Sequence[str],
        *,
        start_of: Callable[[int], int],
        at: int | None = None,
        version: int | None = None,
    ) -> UserRead:
        """`window` of these columns and `request_features` of these names, read together. Raises as `window` does."""
        ...

    def request_features(self, user_id: int, names: Sequence[str]) -> dict[str, Any]:
        """The user's newest values of these request-level columns, those of side tables included: int (timestamps too:
        microseconds since 1970, UTC), float, str, bool, an array for a vector, None for a null; what the store lacks
        is left out."""
        ...

    def delete_user(self, user_id: int) -> bool:
        """Forget the user's timelines and features; False if there were none.

        When that was stays: a fill from tables as of an earlier moment does not bring the user back.
        """
        ...

    def close(self) -> None: ...


class FilledStore(Store, Protocol):
    """A store that can be filled from tables."""

    def fill(
        self, users: Iterable[UserRecord], *, source: Mapping[str, Any], as_of_us: int | None = None
    ) -> FillReport:
        """Bring the store to what a table says of its users, each of them once, and remember `source`, which JSON can
        hold. Readers see all of it or nothing.

        as_of_us: moment that the table is of [microseconds since 1970]; None: now. Users who were deleted since are
        left as they are.

        Events that the store has beyond a table's stay, those that it has under the same numbers must be the table's:
        where they differ the table's timeline replaces the store's, and is counted. Users whom an earlier fill brought
        and this one does not are deleted. Raises ValueError while another fill runs.
        """
        ...

    def filled_from(self) -> dict[str, Any] | None:
        """The `source` of the last fill; None if there was none."""
        ...
