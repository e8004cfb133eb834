"""What a request brings and what the store has, as the tensors that a ranking model reads.

history      the request's own, else the store's; an unknown user has none, which is nothing missing
features     the request's own, over the store's; every one must be in either, null if it is not known
candidates   with their columns; those that the request leaves out are looked up in the items
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from reqdedup.arrays.recent_events import RecentEvents
from reqdedup.arrays.windows import HistoryCut
from reqdedup.batch import RequestBatch
from reqdedup.models.items import Items
from reqdedup.models.transforms import Transforms, history_name
from reqdedup.schema import HISTORY_END, ITEM_ID, REQUEST_TS, TIMELINE_VERSION
from reqdedup.sequences.store import Store, StoreUnavailableError, UserRead, Window, WindowError, now_us
from reqdedup.serving.limits import MAX_CANDIDATES, MAX_FEATURE_AGE_S
from reqdedup.serving.requests import OfUser, OnMissingHistory, RankRequest, RequestError, check_window
from reqdedup.values import UnfitError, integer

T = TypeVar("T", bound=OfUser)


@dataclass(frozen=True, kw_only=True)
class RankInputs:
    """A request as tensors.

    item_id_B, row: of its candidates.  request: of its features, [1, ...].  history: sequence columns [L] of its
    window, which begins with event `start` of the timeline and ends before event `end`.  marks: what had to be done
    without.
    """

    user_id: int
    item_id_B: torch.Tensor
    row: dict[str, torch.Tensor]
    request: dict[str, torch.Tensor]
    history: dict[str, torch.Tensor]
    start: int
    end: int
    version: int
    marks: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        return self.item_id_B.shape[0]

    @staticmethod
    def batch(together: Sequence[RankInputs]) -> RequestBatch:
        """Several requests, at least one, as a batch without histories."""
        first, num_requests = together[0], len(together)
        counts = [one.num_rows for one in together]
        request_R, user_id_R = torch.arange(num_requests), torch.tensor([one.user_id for one in together])

        def side_by_side(values: list[torch.Tensor]) -> torch.Tensor:
            return values[0] if num_requests == 1 else torch.cat(values)

        return RequestBatch(
            user_id_R=user_id_R,
            item_id_B=side_by_side([one.item_id_B for one in together]),
            request_of_row_B=request_R.repeat_interleave(torch.tensor(counts), output_size=sum(counts)),
            row_offsets_R1=torch.tensor([0, *itertools.accumulate(counts)]),
            history_offsets_R1=torch.zeros(num_requests + 1, dtype=torch.int64),
            request={name: side_by_side([one.request[name] for one in together]) for name in first.request},
            row={name: side_by_side([one.row[name] for one in together]) for name in first.row},
        )


@dataclass(frozen=True, kw_only=True)
class UserReader:
    """Reads of a user what one model needs, or several together (`|`), in one look into the store.

    columns: of events.  names: request features that a store has.  cuts: of the models' windows, the longest of which
    is read.  computed: request features that follow from the history, and how.
    """

    store: Store | None
    on_missing_history: OnMissingHistory
    columns: tuple[str, ...]
    names: tuple[str, ...]
    cuts: tuple[HistoryCut, ...]
    computed: Mapping[str, RecentEvents] = field(default_factory=dict)

    @classmethod
    def of(cls, transforms: Transforms, *, store: Store | None, on_missing_history: OnMissingHistory) -> UserReader:
        """Of one model. What would be computed of times that the store does not have is read as it is stored."""
        names = [column.name for column in transforms.history_columns]
        computed = transforms.computed
        reads_times = any(one.window_s is not None for one in computed.values())
        if reads_times and store is not None and "ts" not in store.columns:
            reads_times, computed = False, {}
        return cls(
            store=store,
            on_missing_history=on_missing_history,
            columns=tuple(dict.fromkeys([*map(history_name, names), *(["ts"] if reads_times else [])])),
            names=tuple(c.name for c in transforms.request_columns if c.name not in computed),
            cuts=(transforms.cut,),
            computed=computed,
        )

    def __or__(self, other: UserReader) -> UserReader:
        """Raises ValueError for models that compute a feature in different ways."""
        computed = dict(self.computed)
        for name, theirs in other.computed.items():
            ours = computed.setdefault(name, theirs)
            if ours.window_s != theirs.window_s:
                raise ValueError(
                    f"models that compute {name} in one way required, found windows of {ours.window_s} and "
                    f"{theirs.window_s} s; train both on one table"
                )
            computed[name] = max(ours, theirs, key=lambda one: one.max_events)
        return UserReader(
            store=self.store if other.store is None else other.store,
            on_missing_history="refuse" if "refuse" in (self.on_missing_history, other.on_missing_history) else "empty",
            columns=tuple(dict.fromkeys((*self.columns, *other.columns))),
            names=tuple(dict.fromkeys((*self.names, *other.names))),
            cuts=tuple(dict.fromkeys((*self.cuts, *other.cuts))),
            computed=computed,
        )

    def at(self, request: T, now_us: int) -> T:
        """The request with its time, if that matters and is not said: one for all models, and for the log."""
        if not self.computed or REQUEST_TS in request.request:
            return request
        return replace(request, request={REQUEST_TS: now_us, **request.request})

    @property
    def with_all_columns(self) -> UserReader:
        """Of the store's events: what a digest of them is taken of."""
        return self if self.store is None else replace(self, columns=tuple(self.store.columns))

    def read(self, request: OfUser) -> UserRead:
        """What the request does not bring itself. A store that fails is the read's `failure` if that is not refused.

        Features that follow from the history are those at the request's `request_ts`, now if it has none; a history of
        the request's own that lacks the times for that leaves them out. Raises RequestError, or StoreUnavailableError.
        """
        try:
            integer(request.user_id, "user_id")
        except UnfitError as error:
            raise RequestError.of(error) from None
        read = self._stored(request)
        lacking = [name for name in self.computed if name not in request.request]
        if not lacking:
            return read
        moment_us, window = request.request.get(REQUEST_TS), request.history or read.window
        moment_us = now_us() if moment_us is None else int(moment_us)
        events = {"ts": np.zeros(0, np.int64)} if window is None else window.columns
        counts = {name: self.computed[name].count(events, moment_us) for name in lacking}
        return replace(
            read, features={**read.features, **{n: count for n, count in counts.items() if count is not None}}
        )

    def _stored(self, request: OfUser) -> UserRead:
        names = [name for name in self.names if name not in request.request]
        brings_history = request.history is not None
        if self.store is None or (brings_history and not names):
            if brings_history:
                return UserRead()
            failure = StoreUnavailableError("the request has none, and there is no store")
            if self.on_missing_history == "refuse":
                raise RequestError("history", "a history", f"none: {failure}")
            return UserRead(failure=failure)
        try:
            if brings_history:
                return UserRead(features=self.store.request_features(request.user_id, names))
            found = self.store.fetch(
                request.user_id, self.columns, names, start_of=self._start_of, at=request.at, version=request.version
            )
        except StoreUnavailableError as error:
            if self.on_missing_history == "refuse":
                raise
            return UserRead(failure=error)
        except WindowError as error:
            raise RequestError(error.argument, error.required, error.found) from None
        if found.window is None and request.at:
            raise RequestError("at", f"a timeline of {request.at} events", f"none of user {request.user_id}")
        return found

    def _start_of(self, end: int) -> int:
        starts = [cut.start_of_one(end) for cut in self.cuts]
        return max(0, min(*starts, *(end - one.max_events for one in self.computed.values()), end))


class InputReader:
    """Makes `RankInputs`; a request that cannot be read is refused by a message that names its column."""

    def __init__(
        self,
        transforms: Transforms,
        *,
        store: Store | None = None,
        items: Items | None = None,
        on_missing_history: OnMissingHistory = "refuse",
        max_candidates: int = MAX_CANDIDATES,
        max_feature_age_s: float = MAX_FEATURE_AGE_S,
    ) -> None:
        self.transforms, self.items, self.max_candidates = transforms, items, max_candidates
        self._max_feature_age_us = max_feature_age_s * 1e6
        self.users = UserReader.of(transforms, store=store, on_missing_history=on_missing_history)
        names = [history_name(column.name) for column in transforms.history_columns]
        self._no_history = Window({name: np.zeros(0, np.int64) for name in names}, 0, 0, 0)
        self._request_columns = tuple(column.name for column in transforms.request_columns)
        self._item_columns = tuple(column.name for column in transforms.item_columns)
        self._optional = {column.name for column in transforms.columns if column.nullable} | transforms.defaults.keys()
        self._names = {column.name for column in transforms.columns}

    def read(self, request: RankRequest) -> RankInputs:
        """Raises RequestError, or StoreUnavailableError if a history is missing and that is refused."""
        window, features, marks = self.user(request)
        try:
            history = self.transforms.history(window.columns, end=window.end)
            item_id_B, row = self.rows(request.candidates, marks)
            values = self.transforms.requests([features])
        except UnfitError as error:
            raise error if isinstance(error, RequestError) else RequestError.of(error) from None
        for name, value in ((HISTORY_END, window.end), (TIMELINE_VERSION, window.version)):
            if name in self._names:
                values[name] = torch.tensor([value])
        return RankInputs(
            user_id=request.user_id,
            item_id_B=item_id_B,
            row=row,
            request=values,
            history=history,
            start=window.end - next(iter(history.values())).shape[0],
            end=window.end,
            version=window.version,
            marks=tuple(marks),
        )

    def user(self, request: OfUser) -> tuple[Window, Mapping[str, Any], list[str]]:
        """The history, the request features in plain values, and what had to be done without.

        The request's own stand before the store's; an unknown user's history is empty. Raises RequestError, or
        StoreUnavailableError if a history is missing and that is refused.
        """
        marks: list[str] = []
        read = self.users.read(request) if request.read is None else request.read
        return self._window(request, read, marks), self._features(request, read, marks), marks

    def _window(self, request: OfUser, read: UserRead, marks: list[str]) -> Window:
        if request.history is not None:
            return _checked(request.history, request)
        if read.failure is not None:
            marks.append("history")
        return self._no_history if read.window is None else read.window

    def _features(self, request: OfUser, read: UserRead, marks: list[str]) -> Mapping[str, Any]:
        given = request.request
        if REQUEST_TS in self._request_columns and REQUEST_TS not in given:
            given = {**given, REQUEST_TS: now_us()}
        lacking = [name for name in self._request_columns if name not in given]
        if not lacking:
            return given
        values = {**read.features, **given}
        lacking = [name for name in lacking if name not in values]
        if required := [name for name in lacking if name not in self._optional]:
            if read.failure is not None and self.users.store is not None:
                raise read.failure
            column = f"request.{required[0]}" if len(required) == 1 else "request"
            found = "neither in the request nor stored"
            if required[0] in self.transforms.computed:
                found = "neither in the request nor to be computed: its own history has no times (ts)"
            raise RequestError(column, ", ".join(required), found)
        marks.extend(name for name in lacking if name not in self.transforms.defaults)
        stored = read.features.keys() - self.users.computed.keys() - request.request.keys()
        stored &= set(self._request_columns)
        is_old = read.as_of_us is not None and now_us() - read.as_of_us > self._max_feature_age_us
        if stored and (is_old or not stored.isdisjoint(self.transforms.computed)):
            marks.append("stale_features")
        return values

    def rows(self, candidates: Mapping[str, Any], marks: list[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Candidates as (item_id [B], `RequestBatch.row`); what was missing is added to the marks."""
        return self.transforms.rows(self._candidates(candidates, marks))

    def _candidates(self, candidates: Mapping[str, Any], marks: list[str]) -> Mapping[str, Any]:
        if ITEM_ID not in candidates:
            raise RequestError("candidates", f"column {ITEM_ID}", ", ".join(candidates) or "none")
        if len(candidates[ITEM_ID]) > self.max_candidates:
            most, found = f"at most {self.max_candidates}", str(len(candidates[ITEM_ID]))
            raise RequestError("candidates", most, found, hint="; ask in parts")
        lacking = [name for name in self._item_columns if name not in candidates]
        if not lacking:
            return candidates
        known = {} if self.items is None else self.items.columns
        values = dict(candidates)
        for name in lacking:
            if self.items is not None and name in known:
                item_id_B = np.asarray(candidates[ITEM_ID])
                at_B = self.items.positions(item_id_B)
                if not (at_B < 0).any():
                    values[name] = known[name][at_B]
                    continue
                what = f"{name} of item {item_id_B[at_B < 0][0]}"
                values[name] = [None if at < 0 else known[name][at] for at in at_B]
            else:
                what = name
            if name not in self._optional:
                found = f"neither in the request ({', '.join(candidates)}) nor among the model's items"
                raise RequestError(f"candidates.{name}", what, found)
            if name not in self.transforms.defaults:
                marks.append(name)
        return values


def _checked(window: Window, request: OfUser) -> Window:
    """Raises RequestError for a history that is not what it says, or not the one that is asked for."""
    check_window(window)
    for name, asked, found in (("at", request.at, window.end), ("version", request.version, window.version)):
        if asked is not None and asked != found:
            raise RequestError(name, f"{found} of the request's own history", str(asked), hint="; leave it out")
    return window
