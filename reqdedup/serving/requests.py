"""What is asked of serving and what it answers, in process: plain values and numpy, no wire format, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from reqdedup.sequences.store import Window

ContextOrigin = Literal["kept", "extended", "computed"]


class RequestError(ValueError):
    """A request that cannot be answered as it is: what was required, what was found. Its sender's fault."""


@dataclass(frozen=True, kw_only=True)
class RankRequest:
    """Score these candidates for this user.

    request: request-level columns by name, plain values; those that the store has may be left out.
    candidates: item_id [M] int64 and the item-level columns of the model [M] each; an item's own columns may be left
        out if the bundle's items have them.
    history: the user's window; None asks the store for it.  at, version: which one (`Store.window`).
    """

    user_id: int
    candidates: Mapping[str, np.ndarray]
    request: Mapping[str, Any] = field(default_factory=dict)
    history: Window | None = None
    at: int | None = None
    version: int | None = None

    @property
    def num_candidates(self) -> int:
        return len(self.candidates["item_id"])


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """logits: [M] float32 for each label, candidates in the order asked.

    model: fingerprint of the bundle that computed them.  start, end, version: window of the timeline that was read.
    context: whether it was kept, extended by new events or computed.  marks: what the answer had to do without,
        `history` for example; empty if it is whole.
    """

    logits: Mapping[str, np.ndarray]
    model: str
    start: int
    end: int
    version: int
    context: ContextOrigin
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ItemFilter:
    """Which items may be retrieved. allow: only these item ids (None: all).  deny: never these, seen ones for example.
    categories: item column -> values of which an item must have one."""

    allow: np.ndarray | None = None
    deny: np.ndarray | None = None
    categories: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RetrieveRequest:
    """The `k` items whose vectors are nearest to the user's. request, history, at, version: as of `RankRequest`."""

    user_id: int
    k: int
    request: Mapping[str, Any] = field(default_factory=dict)
    history: Window | None = None
    at: int | None = None
    version: int | None = None
    filter: ItemFilter = field(default_factory=ItemFilter)


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """item_id: [<= k] int64, best first.  score: [<= k] float32, cosines.  index: exact, or the kind of ANN.

    The other fields are those of `Ranked`.
    """

    item_id: np.ndarray
    score: np.ndarray
    index: str
    model: str
    start: int
    end: int
    version: int
    context: ContextOrigin
    marks: tuple[str, ...] = ()
