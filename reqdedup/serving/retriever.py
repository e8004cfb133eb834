"""`Retriever`: the items nearest to a user. The history is read once and its state kept, the request enters the head.

store or body -> window -> state, kept or computed -> head(state, request features) -> index, filter -> Retrieved
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from reqdedup.models.two_tower import TwoTower
from reqdedup.sequences.store import Store, StoreUnavailableError, Window
from reqdedup.serving.item_index import ExactIndex, ItemIndex, nearest
from reqdedup.serving.items import Items
from reqdedup.serving.requests import ContextOrigin, RequestError, Retrieved, RetrieveRequest
from reqdedup.serving.state_cache import StateCache, StateKey, history_digest

OnMissingHistory = Literal["refuse", "empty"]


class Retriever:
    """Answers `RetrieveRequest`s, in the same bits with a state that was kept or computed. Threads may share it."""

    def __init__(
        self,
        model: TwoTower,
        items: Items,
        *,
        fingerprint: str,
        start_of: Callable[[int], int],
        index: ItemIndex | None = None,
        store: Store | None = None,
        on_missing_history: OnMissingHistory = "refuse",
        state_bytes: int = 64 << 20,
    ) -> None:
        """fingerprint: of the model's weights and configuration.  start_of: first event of the window that ends at an
        event.  index: exact search if left out.  state_bytes: of the states kept."""
        model.check_evaluates()
        self.model, self.items, self.index = model, items, index or ExactIndex(items)
        self.fingerprint, self.states = fingerprint, StateCache(state_bytes)
        self._start_of, self._store, self._on_missing_history = start_of, store, on_missing_history
        config = model.config
        self._history_columns = ("item_id", *config.history_categories)
        self._widths = dict(config.request_vectors)
        self._request_columns = (*config.request_categories, *self._widths, *config.request_numbers)

    def retrieve(self, request: RetrieveRequest) -> Retrieved:
        """Raises RequestError for what its sender can mend, a missing history included if it is refused."""
        if request.k < 1:
            raise RequestError(f"k: at least 1 item required, found {request.k}")
        window, marks = self._window(request)
        state_D, origin = self.state(request.user_id, window)
        user_D = self.user_vector(state_D, self._request_values(request))
        row, score, kind = nearest(self.items, self.index, user_D, request.k, request.filter)
        return Retrieved(
            item_id=self.items.item_id[row],
            score=score,
            index=kind,
            model=self.fingerprint,
            start=window.start,
            end=window.end,
            version=window.version,
            context=origin,
            marks=marks,
        )

    def state(self, user_id: int, window: Window) -> tuple[np.ndarray, ContextOrigin]:
        """The user's state [D] float32 and where it comes from."""
        history = {name: window.columns[name] for name in self._history_columns}
        key = StateKey(self.fingerprint, user_id, window.version, window.start, window.end)
        digest = history_digest(history)
        kept_D = self.states.get(key, digest)
        if kept_D is not None:
            return kept_D, "kept"
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in history.items()}
        state_D = self.model.user_state(tensors).numpy()
        self.states.put(key, digest, state_D)
        return state_D, "computed"

    def user_vector(self, state_D: np.ndarray, request: Mapping[str, torch.Tensor]) -> np.ndarray:
        """[output_width] float32 of length 1. Raises RequestError if a feature makes it no number."""
        user_D = self.model.user_head(torch.from_numpy(state_D)[None], request)[0].numpy()
        if not np.isfinite(user_D).all():
            raise RequestError("request features: finite numbers required, found some that are not")
        return user_D

    def _window(self, request: RetrieveRequest) -> tuple[Window, tuple[str, ...]]:
        window, missing = request.history, "no history in the request and no store"
        if window is None and self._store is not None:
            try:
                options: dict[str, Any] = {"start_of": self._start_of, "at": request.at, "version": request.version}
                window = self._store.window(request.user_id, self._history_columns, **options)
                missing = f"user {request.user_id} has no timeline in the store"
            except StoreUnavailableError as error:
                if self._on_missing_history == "refuse":
                    raise
                missing = str(error)
        if window is not None:
            return checked_window(window, self._history_columns, self._start_of), ()
        if self._on_missing_history == "refuse":
            raise RequestError(f"a history required, found none: {missing}")
        return Window({name: np.zeros(0, np.int64) for name in self._history_columns}, 0, 0, 0), ("history",)

    def _request_values(self, request: RetrieveRequest) -> dict[str, torch.Tensor]:
        lacking = [name for name in self._request_columns if name not in request.request]
        values = dict(request.request)
        if lacking and self._store is not None:
            values |= self._store.request_features(request.user_id, lacking)
        if missing := [name for name in self._request_columns if values.get(name) is None]:
            raise RequestError(
                f"request features {', '.join(missing)} required, found neither in the request nor stored"
            )
        return {name: self._tensor(name, values[name]) for name in self._request_columns}

    def _tensor(self, name: str, value: Any) -> torch.Tensor:
        found = np.asarray(value)
        shape = (self._widths[name],) if name in self._widths else ()
        if found.shape != shape or found.dtype.kind not in "biuf":
            wanted = f"{shape[0]} numbers" if shape else "one number"
            raise RequestError(f"request[{name!r}]: {wanted} required, found {found.dtype} of shape {found.shape}")
        return torch.from_numpy(found[None].astype(np.float32 if name in self._widths else found.dtype))


def checked_window(window: Window, columns: Sequence[str], start_of: Callable[[int], int]) -> Window:
    """The window, cut where `start_of` begins it. Raises RequestError for columns missing or not of its length."""
    if missing := [name for name in columns if name not in window.columns]:
        raise RequestError(f"history: columns {', '.join(columns)} required, found no {', '.join(missing)}")
    wrong = {
        name: len(window.columns[name]) for name in columns if len(window.columns[name]) != window.end - window.start
    }
    if wrong or not 0 <= window.start <= window.end:
        raise RequestError(
            f"history: {window.end - window.start} events in each column required, those from {window.start} to {window.end}, "
            f"found {wrong}"
        )
    cut = max(start_of(window.end) - window.start, 0)
    if not cut:
        return window
    return Window(
        {name: window.columns[name][cut:] for name in columns}, window.start + cut, window.end, window.version
    )
