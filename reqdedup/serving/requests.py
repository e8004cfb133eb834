"""What is asked of serving and what it answers, in process: plain values and numpy, no wire format, no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from reqdedup.sequences.store import UserRead, Window
from reqdedup.values import UnfitError

ContextOrigin = Literal["kept", "extended", "computed"]

OnMissingHistory = Literal["refuse", "empty"]
"""What a server does without a store that answers: refuse the request, or take an empty history and mark the answer."""


class RequestError(UnfitError):
    """A request that cannot be answered as it is, its sender's fault. column: path of what is wrong, `request.device`
    for example; required, found: there.  status: of HTTP, 4xx."""

    def __init__(self, column: str, required: str, found: str, *, hint: str = "", status: int = 422) -> None:
        super().__init__(column, required, found, hint=hint)
        self.status = status

    @classmethod
    def of(cls, error: UnfitError) -> RequestError:
        return cls(error.column, error.required, error.found)


@dataclass(frozen=True, kw_only=True)
class OfUser:
    """Who asks, and when: what all requests have.

    request: request-level columns by name, plain values; those that the store has may be left out.
    history: the user's window; None asks the store for it.  at, version: which one (`Store.window`).
    read: what was read of the user already, for several models at once (`UserReader`); None: each reads for itself.
    """

    user_id: int
    request: Mapping[str, Any] = field(default_factory=dict)
    history: Window | None = None
    at: int | None = None
    version: int | None = None
    read: UserRead | None = None

    def of_user(self) -> dict[str, Any]:
        """The fields above, for another request of the same user."""
        return {one.name: getattr(self, one.name) for one in fields(OfUser)}


def check_window(window: Window) -> None:
    """Raises RequestError for a history that is not what it says."""
    if window.start < 0:
        raise RequestError("history.start", "at least 0", str(window.start))
    if window.end < window.start:
        raise RequestError("history.end", f"at least the start, {window.start},", str(window.end))
    wanted = window.end - window.start
    if wrong := {name: len(values) for name, values in window.columns.items() if len(values) != wanted}:
        events = f"{wanted} events in each column, from start {window.start} to end {window.end},"
        raise RequestError("history", events, str(wrong))


@dataclass(frozen=True, kw_only=True)
class RankRequest(OfUser):
    """Score these candidates for this user.

    candidates: item_id [M] int64 and the item-level columns of the model [M] each; an item's own columns may be left
        out if the bundle's items have them.
    """

    candidates: Mapping[str, np.ndarray]

    @property
    def num_candidates(self) -> int:
        return len(self.candidates["item_id"])


@dataclass(frozen=True, kw_only=True)
class OfWindow:
    """What was read for an answer: what all answers have.

    start, end, version: window of the timeline.  context: whether it was kept, extended by new events or computed.
    marks: what the answer had to do without, `history` for example; empty if it is whole.
    """

    start: int
    end: int
    version: int
    context: ContextOrigin
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ranked(OfWindow):
    """logits: [M] float32 for each label, candidates in the order asked.  model: fingerprint of the bundle."""

    logits: Mapping[str, np.ndarray]
    model: str


@dataclass(frozen=True, kw_only=True)
class ItemFilter:
    """Which items may be retrieved.

    allow: only these item ids (None: all).  deny: never these.  unseen: True leaves out the items of the window that is
    read.  categories: item column -> values of which an item must have one.
    """

    allow: np.ndarray | None = None
    deny: np.ndarray | None = None
    unseen: bool = False
    categories: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RetrieveRequest(OfUser):
    """The `k` items whose vectors are nearest to the user's."""

    k: int
    filter: ItemFilter = field(default_factory=ItemFilter)


@dataclass(frozen=True, kw_only=True)
class Retrieved(OfWindow):
    """item_id: [<= k] int64, best first.  score: [<= k] float32, cosines.  index: exact, or the kind of ANN.

    model: fingerprint of the bundle.
    """

    item_id: np.ndarray
    score: np.ndarray
    index: str
    model: str


@dataclass(frozen=True, kw_only=True)
class RecommendRequest(OfUser):
    """A slate for this user.

    length: items of the slate, None: those of the configuration.  explains: the answer says what every step took, and
        every term's share of each pick.
    """

    length: int | None = None
    explains: bool = False
    filter: ItemFilter = field(default_factory=ItemFilter)


StepName = Literal["retrieval", "light_ranking", "ranking", "reranking"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the funnel. received, passed: items before and after it.  seconds: wall time."""

    name: StepName
    received: int
    passed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Recommended(OfWindow):
    """The slate, best first, and what it was composed of.

    item_id: [T] int64.  item_key: the ids as the log has them, [T]; None if the bundle has none.
    score: [T] float64, of the ranking.  logits: [T] float32 for each label.
    ranked_item_id, ranked_score: of all candidates that were ranked, [M], for the impression log.
    contributions: of each term to the utility of each pick, [T] float64 by name; empty unless asked for.
    steps: of the funnel, in their order; empty unless asked for.
    retrieval_model, ranking_model: fingerprints of the bundles.  light_model: of the light ranking's, None if it has
        none.
    funnel: fingerprint of the funnel's configuration.
    start, end, version, context: of the ranking; of the retrieval if nothing was left to rank.
    request_id: by which clicks find the impression; None if impressions are not logged.
    """

    item_id: np.ndarray
    item_key: Sequence[str] | None
    score: np.ndarray
    logits: Mapping[str, np.ndarray]
    ranked_item_id: np.ndarray
    ranked_score: np.ndarray
    contributions: Mapping[str, np.ndarray]
    steps: tuple[Step, ...]
    retrieval_model: str
    ranking_model: str
    funnel: str
    light_model: str | None = None
    request_id: int | None = None
