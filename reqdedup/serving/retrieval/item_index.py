"""Which items are nearest to a user: exact search, which is the definition, and an approximate index beside it.

    nearest(items, index, user_D, k, filter)
        an index proposes rows, a few more than k            a matrix product, or some of faiss's lists
        each gets its exact score, the best k stay           sum of the products, row by row; ties to the smaller id

The exact score of an item is computed from its own vector alone, so it has the same bits whichever index proposed it,
and whatever else is searched. A matrix product has not: its last bits depend on where a row stands.

A filter is answered exactly, on the rows that it keeps: an approximate index that looks at a share of the items finds
next to nothing of what a narrow filter keeps. Deny lists of up to `MOST_DENIED` items only take away from a longer
answer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from reqdedup.serving.requests import ItemFilter
from reqdedup.serving.retrieval.item_vectors import ItemVectors

MOST_DENIED = 4096
"""Items of a deny list up to which an index is asked for as many more, and not exactly for the rest."""

GATHER_AT_MOST = 0.15
"""Share of the items up to which the vectors of the kept ones are gathered; beyond it all are multiplied. At a million
items of 64 dimensions both take the same time at a fifth."""

_BLOCK = 64


class ItemIndex(Protocol):
    """Proposes rows of `ItemVectors`."""

    @property
    def kind(self) -> str:
        """exact, or the kind of approximation."""
        ...

    def propose(self, user_D: np.ndarray, k: int) -> np.ndarray:
        """Rows among which the k nearest are (an approximate index: most of them), in any order, each once."""
        ...


class ExactIndex:
    """Every item is looked at: the definition."""

    kind = "exact"

    def __init__(self, items: ItemVectors) -> None:
        self._items = items

    def propose(self, user_D: np.ndarray, k: int) -> np.ndarray:
        return _nearest_of(_products(self._items.vectors, user_D), k, slack=_slack(user_D))


def nearest(
    items: ItemVectors, index: ItemIndex, user_D: np.ndarray, k: int, filter: ItemFilter
) -> tuple[np.ndarray, np.ndarray, str]:
    """The rows of the k items with the highest scores that the filter allows, best first, their scores
    [<= k] float32, and the kind of index that found them. Fewer if fewer are allowed.

    user_D: float32 of length 1.
    Raises RequestError for a category that is no column of the items.
    """
    kept = items.kept(filter)
    denied = np.zeros(0, np.int64) if filter.deny is None else items.rows_of(filter.deny)
    if kept is None and len(denied) > MOST_DENIED:
        kept = np.arange(len(items))
    if kept is not None:
        kept = np.setdiff1d(kept, denied, assume_unique=True) if len(denied) else kept
        rows, kind = exact_among(items, kept, user_D, k), "exact"
    else:
        rows, kind = index.propose(user_D, min(k + len(denied), len(items))), index.kind
        if len(denied):
            rows = np.setdiff1d(rows, denied, assume_unique=True)
        if len(rows) < min(k, len(items) - len(denied)):  # the lists that were looked at hold too few
            return nearest(items, ExactIndex(items), user_D, k, filter)
    score = exact_scores(items.vectors[rows], user_D)
    best = np.lexsort((rows, -score))[:k]
    return rows[best], score[best], kind


def exact_scores(vectors_ND: np.ndarray, user_D: np.ndarray) -> np.ndarray:
    """Scores [N] float32, each in bits of its own: numpy adds every row of products in the same order."""
    return (np.ascontiguousarray(vectors_ND) * user_D).sum(1)


def exact_among(items: ItemVectors, rows: np.ndarray, user_D: np.ndarray, k: int) -> np.ndarray:
    """Those of the given rows among which their k nearest are."""
    if len(rows) <= GATHER_AT_MOST * len(items):
        product_N = _products(items.vectors[rows], user_D)
    else:
        product_N = _products(items.vectors, user_D)[rows]
    return rows[_nearest_of(product_N, k, slack=_slack(user_D))]


def _products(vectors_ND: np.ndarray, user_D: np.ndarray) -> np.ndarray:
    return torch.mv(torch.from_numpy(vectors_ND), torch.from_numpy(user_D)).numpy()


def _slack(user_D: np.ndarray) -> float:
    """Twice what a matrix product and an exact score may differ by, for vectors of length 1."""
    return 2 * len(user_D) * float(np.finfo(np.float32).eps) * max(1.0, float(np.linalg.norm(user_D)))


def _nearest_of(score_N: np.ndarray, k: int, *, slack: float) -> np.ndarray:
    """Positions of all scores that reach the k-th highest but for `slack`, ascending.

    Of many scores, the k-th highest of the maxima of blocks bounds the k-th highest from below: two passes over the
    scores instead of a selection.
    """
    if k <= 0:
        return np.zeros(0, np.int64)
    if len(score_N) <= k:
        return np.arange(len(score_N))
    num_blocks = len(score_N) // _BLOCK
    if num_blocks > 4 * k:
        maximum_M = score_N[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK).max(1)
        bound = np.partition(maximum_M, num_blocks - k)[num_blocks - k]
        reach = np.flatnonzero(score_N >= bound - slack)
    else:
        reach = np.arange(len(score_N))
    kth = np.partition(score_N[reach], len(reach) - k)[len(reach) - k]
    return reach[score_N[reach] >= kth - slack]
