"""`Retriever`: the items nearest to a user. The history is read once and its state kept, the request enters the head.

store or body -> window -> state, kept or computed -> head(state, request features) -> index, filter -> Retrieved
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from reqdedup.models.bundle import Bundle
from reqdedup.models.transforms import Transforms
from reqdedup.models.two_tower import TwoTower, user_head
from reqdedup.sequences.store import Store, Window, events_digest
from reqdedup.serving.inputs import InputReader
from reqdedup.serving.limits import MAX_FEATURE_AGE_S
from reqdedup.serving.requests import (
    ContextOrigin,
    ItemFilter,
    OfUser,
    OnMissingHistory,
    RequestError,
    Retrieved,
    RetrieveRequest,
    check_window,
)
from reqdedup.serving.retrieval.approximate_index import INDEX_NAME, open_index
from reqdedup.serving.retrieval.item_index import ExactIndex, ItemIndex, nearest
from reqdedup.serving.retrieval.item_vectors import ItemVectors
from reqdedup.serving.retrieval.state_cache import StateCache, StateKey
from reqdedup.values import UnfitError


@dataclass(frozen=True)
class ReadWindow:
    """history: as the model reads it, [L] each.  start, end, version: of the timeline.  digest: of the events."""

    history: dict[str, torch.Tensor]
    start: int
    end: int
    version: int
    digest: bytes


class Retriever:
    """Answers `RetrieveRequest`s, in the same bits with a state that was kept or computed. Threads may share it."""

    def __init__(
        self,
        model: TwoTower,
        transforms: Transforms,
        items: ItemVectors,
        *,
        fingerprint: str,
        index: ItemIndex | None = None,
        store: Store | None = None,
        on_missing_history: OnMissingHistory = "refuse",
        max_feature_age_s: float = MAX_FEATURE_AGE_S,
        state_bytes: int = 64 << 20,
    ) -> None:
        """fingerprint: of the model's weights and configuration.  index: exact search if left out.
        state_bytes: of the states kept."""
        self._head = user_head(model)
        self.model, self.transforms, self.items, self.index = model, transforms, items, index or ExactIndex(items)
        self.fingerprint, self.states = fingerprint, StateCache(state_bytes)
        self._inputs = InputReader(
            transforms, store=store, on_missing_history=on_missing_history, max_feature_age_s=max_feature_age_s
        )
        self.users = self._inputs.users

    @classmethod
    def of(cls, bundle: Bundle, **options: Any) -> Retriever:
        """Of a retrieval model's bundle, with its index if there is one. options: of the constructor.

        Raises ValueError for a bundle of another model, and for an index that is damaged or not of its items.
        """
        if bundle.task != "retrieval":
            raise ValueError(f"{bundle.folder}: the bundle of a retrieval model required, found one of {bundle.task}")
        items = ItemVectors.of_bundle(bundle)
        index = open_index(bundle.artifact(INDEX_NAME), items) if INDEX_NAME in bundle.artifacts else None
        return cls(
            cast(TwoTower, bundle.model),
            bundle.transforms,
            items,
            fingerprint=bundle.fingerprint,
            index=index,
            **options,
        )

    def retrieve(self, request: RetrieveRequest) -> Retrieved:
        """Raises RequestError for what its sender can mend, StoreUnavailableError for what a later try may."""
        if request.k < 1:
            raise RequestError("k", "at least 1 item", str(request.k))
        user_D, read, origin, marks = self.user(request)
        row, score, kind = nearest(self.items, self.index, user_D, request.k, without_seen(request.filter, read))
        return Retrieved(
            item_id=self.items.item_id[row],
            score=score,
            index=kind,
            model=self.fingerprint,
            start=read.start,
            end=read.end,
            version=read.version,
            context=origin,
            marks=tuple(marks),
        )

    def user(self, request: OfUser) -> tuple[np.ndarray, ReadWindow, ContextOrigin, list[str]]:
        """The user's vector [output_width], the window that was read, where its state comes from, and what had to be
        done without. Raises RequestError or StoreUnavailableError, as `retrieve`."""
        window, plain, marks = self._inputs.user(request)
        read = self.read(window)
        state_D, origin = self.state(request.user_id, read)
        try:
            features = self.transforms.requests([plain])
        except UnfitError as error:
            raise RequestError.of(error) from None
        return self.user_vector(state_D, features), read, origin, marks

    def state(self, user_id: int, window: ReadWindow) -> tuple[np.ndarray, ContextOrigin]:
        """The user's state [D] float32 and where it comes from."""
        key = StateKey(self.fingerprint, user_id, window.version, window.start, window.end)
        kept_D = self.states.get(key, window.digest)
        if kept_D is not None:
            return kept_D, "kept"
        state_D = self.model.user_state(window.history).numpy()
        self.states.put(key, window.digest, state_D)
        return state_D, "computed"

    def read(self, window: Window) -> ReadWindow:
        """The window's events as the model reads them, cut where its window begins.

        Raises RequestError for a window that lacks a column or is not as long as it says.
        """
        check_window(window)
        try:
            history = self.transforms.history(window.columns, end=window.end)
        except UnfitError as error:
            raise RequestError.of(error) from None
        digest = events_digest({name: values.numpy() for name, values in history.items()})
        return ReadWindow(history, window.end - len(history["item_id"]), window.end, window.version, digest)

    def user_vector(self, state_D: np.ndarray, request: Mapping[str, torch.Tensor]) -> np.ndarray:
        """[output_width] float32 of length 1. Raises RequestError if features are so large that it is no number."""
        with np.errstate(over="ignore", invalid="ignore"):
            user_D = self._head(state_D, request)
        if not np.isfinite(user_D).all():
            raise RequestError("request", "numbers that the model can add up", "larger ones")
        return user_D


def without_seen(filter: ItemFilter, window: ReadWindow) -> ItemFilter:
    """The filter with the window's items on its deny list if it asks for unseen ones."""
    if not filter.unseen:
        return filter
    seen = window.history["item_id"].numpy()
    return replace(filter, deny=seen if filter.deny is None else np.concatenate([filter.deny, seen]), unseen=False)
