"""The baselines of retrieval on a run's held-out positives: fitted on what the training users engaged with.

A training user is the history of the latest request, and the positives of the training rows that it does not hold, by
time: those of earlier requests before it, since it may be cut, the others after it. Of more than MOST_USERS
training users so many are taken, by hash. Items of histories that are no candidate anywhere in the table are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from reqdedup.arrays.places import places_in
from reqdedup.batch import RequestBatch
from reqdedup.models import baselines as rules
from reqdedup.models.baselines import Histories, Interactions
from reqdedup.schema import HISTORY_ITEM_ID, REQUEST_ID, REQUEST_TS
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.judgement.catalogue_ranks import best_places, ranks_of_rows, seen_places
from reqdedup.training.judgement.outcomes import Outcomes, Ranked
from reqdedup.training.loader import RequestLoader
from reqdedup.training.plan import Source
from reqdedup.training.split import Split, TheseUsers, UserSplit

MOST_USERS = 20_000
_USER_STREAM = 0xBB67AE8584CAA73B
"""Users are drawn by another seed than a run's held-out ones: else all of a share, or none, could be among them. The
fraction of the square root of 3, which no seed is by chance."""
_SCORES_TOGETHER = 4_000_000
_BATCH_REQUESTS = 1024

METHODS: dict[str, Callable[[Interactions], Any]] = {
    "popularity": rules.Popularity,
    "last item": rules.LastItem,
    "item-kNN": rules.ItemNeighbours,
    "EASE": rules.Ease,
    "iALS": rules.ImplicitFactors,
}


def retrieval_baselines(
    config: TrainingConfig,
    source: Source,
    model: Ranked,
    train: Split,
    methods: Mapping[str, Callable[[Interactions], Any]] = METHODS,
    *,
    positive_category: str = "",
    positive_values: Collection[int] = (),
) -> dict[str, Outcomes]:
    """By name; iALS only if its package is installed.

    positive_category, positive_values: column of histories and its values at the events that the methods are given, as
        in `FoundationConfig`; "" for all events. What a request has seen are all of them in any case.
    """

    def loader(columns: tuple[str, ...], users: Split | None, positive_label: str | None = None) -> RequestLoader:
        return RequestLoader(
            source,
            requests_per_batch=_BATCH_REQUESTS,
            shuffle="none",
            columns=columns,
            users=users,
            positive_label=positive_label,
            cut=config.history_cut,
            prefetch_batches=0,
        )

    label = config.positive_label
    rows = loader((label,) if label else (), None)
    catalogue = Catalogue.read([rows.empty_batch(), *rows], (), counted=train, labels=(label,) if label else ())
    numbering = _Numbering(catalogue)
    shown = (HISTORY_ITEM_ID, *((f"history_{positive_category}",) if positive_category else ()))
    given = partial(_given, positive_category, positive_values)
    positives = loader((label,) if label else (), train, positive_label=label)
    sequences = _sequences(loader(shown, train), positives, given, config.seed)
    interactions = Interactions(numbering.histories(sequences), numbering.count_V)
    keys, request_of_row_B = np.unique(np.stack([model.user_id_B, model.request_id_B]), axis=1, return_inverse=True)
    asked = TheseUsers(np.unique(keys[0]))
    seen = numbering.histories(_histories_of(loader(shown, asked), keys))
    histories = numbering.histories(_histories_of(loader(shown, asked), keys, given)) if positive_category else seen
    candidate_id_C = catalogue.sample(config.catalogue_items, config.seed)[0].numpy()
    places = _Places(
        candidate_C=numbering.of(candidate_id_C),
        own_B=numbering.of(model.item_id_B),
        own_place_B=places_in(model.item_id_B, candidate_id_C),
        request_of_row_B=request_of_row_B.ravel(),
    )
    is_there = rules.ImplicitFactors.is_installed()
    return {
        name: _ranked(fit(interactions), len(catalogue.item_id_V), histories, seen, places, model)
        for name, fit in methods.items()
        if is_there or fit is not rules.ImplicitFactors
    }


class _Numbering:
    """Items of a catalogue numbered from 0 by falling popularity. count_V: positives of each."""

    def __init__(self, catalogue: Catalogue) -> None:
        order = np.argsort(-catalogue.count_V, kind="stable")
        self.count_V, self._item_id_V = catalogue.count_V[order], catalogue.item_id_V
        self._number_V = np.argsort(order, kind="stable")

    def of(self, item_id_N: np.ndarray) -> np.ndarray:
        """[N] int64, -1 for an item that the catalogue does not have."""
        at_N = places_in(item_id_N, self._item_id_V)
        return np.where(at_N >= 0, self._number_V[at_N], -1) if len(self._number_V) else at_N

    def histories(self, lists: list[np.ndarray]) -> Histories:
        items = np.concatenate([np.zeros(0, np.int64), *lists])
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
        return Histories(self.of(items), offsets)


Kept = Callable[[RequestBatch, slice], np.ndarray]
"""Of a batch and the place of one of its histories: the items of the events that count."""


def _items(batch: RequestBatch, place: slice) -> np.ndarray:
    return batch.history["item_id"][place].numpy()


def _given(category: str, values: Collection[int], batch: RequestBatch, place: slice) -> np.ndarray:
    items = _items(batch, place)
    return items[np.isin(batch.history[category][place].numpy(), list(values))] if category else items


def fitted_users(user_id_U: np.ndarray, seed: int) -> np.ndarray:
    """Those of a run's training users that baselines are fitted on: about MOST_USERS of more. seed: of the run."""
    if len(user_id_U) <= MOST_USERS:
        return user_id_U
    share = UserSplit(held_out=MOST_USERS / len(user_id_U), part="test", seed=seed ^ _USER_STREAM)
    return user_id_U[share.contains(user_id_U)]


def _sequences(with_histories: RequestLoader, positives: RequestLoader, given: Kept, seed: int) -> list[np.ndarray]:
    """Item ids of each training user, in order; see the head of this module."""
    latest: dict[int, tuple[int, np.ndarray]] = {}
    for batch, r, history in _requests(with_histories, given):
        user, time = int(batch.user_id_R[r]), int(batch.request[REQUEST_TS][r])
        if user not in latest or time >= latest[user][0]:
            latest[user] = time, history.copy()
    latest = {user: latest[user] for user in fitted_users(np.array(list(latest), np.int64), seed).tolist()}
    more_of: dict[int, list[tuple[int, int]]] = {}
    for batch in positives:
        user_B, time_B = (x_R[batch.request_of_row_B] for x_R in (batch.user_id_R, batch.request[REQUEST_TS]))
        for user, time, item in zip(user_B.tolist(), time_B.tolist(), batch.item_id_B.tolist()):
            if user in latest:
                more_of.setdefault(user, []).append((time, item))
    lists = []
    for user, (latest_time, history) in latest.items():
        known = set(history.tolist())
        more = [(time, item) for time, item in sorted(more_of.get(user, [])) if item not in known]
        earlier = dict.fromkeys(item for time, item in more if time < latest_time)
        later = dict.fromkeys(item for time, item in more if time >= latest_time and item not in earlier)
        lists.append(np.array([*earlier, *history.tolist(), *later], np.int64))
    return lists


def _histories_of(loader: RequestLoader, keys_2R: np.ndarray, kept: Kept = _items) -> list[np.ndarray]:
    """The histories of these requests, (user, request id) each, in their order."""
    at = {(user, request): r for r, (user, request) in enumerate(keys_2R.T.tolist())}
    found = [np.zeros(0, np.int64)] * len(at)
    for batch, r, history in _requests(loader, kept):
        key = int(batch.user_id_R[r]), int(batch.request[REQUEST_ID][r])
        if key in at:
            found[at[key]] = history.copy()
    return found


def _requests(loader: RequestLoader, kept: Kept) -> Iterator[tuple[RequestBatch, int, np.ndarray]]:
    """(batch, number in it, items of the history) of every request."""
    for batch in loader:
        offsets = batch.history_offsets_R1.tolist()
        for r in range(batch.num_requests):
            yield batch, r, kept(batch, slice(offsets[r], offsets[r + 1]))


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where rows and candidates stand.

    candidate_C: number of each candidate.  own_B: number of each row's item.  own_place_B: its place among the
    candidates, -1 without one.  request_of_row_B: number of each row's history.
    """

    candidate_C: np.ndarray
    own_B: np.ndarray
    own_place_B: np.ndarray
    request_of_row_B: np.ndarray


def _ranked(rule: Any, num_items: int, histories: Histories, seen: Histories, places: _Places, model: Ranked) -> Ranked:
    """The model's rows as the rule ranks them by `histories`, each beside what its request has `seen`."""
    rank_B, unseen_rank_B, top_BK = np.zeros(len(model)), np.zeros(len(model)), np.zeros_like(model.top_BK)
    by_request = np.argsort(places.request_of_row_B, kind="stable")
    request_sorted = places.request_of_row_B[by_request]
    place_of_V = np.full(num_items + 1, -1)  # the last one for items that are not known
    place_of_V[places.candidate_C] = np.arange(len(places.candidate_C))
    together = max(1, _SCORES_TOGETHER // max(num_items, 1))
    for first in range(0, len(histories), together):
        end_of_part = min(first + together, len(histories))
        part, seen_part = histories.part(first, end_of_part), seen.part(first, end_of_part)
        begin, end = np.searchsorted(request_sorted, (first, first + len(part)))
        rows = by_request[begin:end]
        request_b, score_RV = places.request_of_row_B[rows] - first, rule.scores(part)
        score_RC = score_RV[:, places.candidate_C]
        rank_B[rows], unseen_rank_B[rows] = ranks_of_rows(
            score_RC,
            score_RV[request_b, places.own_B[rows]],
            request_of_row_B=request_b,
            place_B=places.own_place_B[rows],
            is_seen_RC=seen_places(place_of_V[seen_part.item_T], seen_part.offsets_R1, len(places.candidate_C)),
        )
        top_BK[rows] = best_places(score_RC, top_BK.shape[1])[request_b]
    unseen_rank_B = np.where(np.isnan(model.unseen_rank_B), np.nan, unseen_rank_B)
    return replace(model, rank_B=rank_B, unseen_rank_B=unseen_rank_B, top_BK=top_BK)
