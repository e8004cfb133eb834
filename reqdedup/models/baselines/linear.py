"""Item-to-item weights applied to a history: neighbours by cosine, and EASE.

    score of item i = sum over the history's items h of decay^age(h) * W[h, i]

Both need the matrix of items that users engaged with together, so they know the most popular DENSE_ITEMS alone; all
other items score 0 and come after, by popularity.
"""

from __future__ import annotations

import numpy as np

from reqdedup.models.baselines.interactions import Histories, Interactions, broken_by_popularity

DENSE_ITEMS = 4_000
"""64 MB a matrix, and seconds."""


class ItemToItem:
    """weight: [N, N] float32, from an item of the history to a scored one."""

    def __init__(self, interactions: Interactions, weight: np.ndarray, decay: float) -> None:
        self._weight, self._decay, self._popularity_V = weight, decay, interactions.popularity

    def scores(self, histories: Histories) -> np.ndarray:
        """[R, V] float32."""
        score_RV = np.zeros((len(histories), len(self._popularity_V)), np.float32)
        num_dense = len(self._weight)
        score_RV[:, :num_dense] = histories.weights(num_dense, decay=self._decay) @ self._weight
        return broken_by_popularity(score_RV, self._popularity_V)


class ItemNeighbours(ItemToItem):
    """Item-kNN: cosine of the users' sets, shrunk, of each scored item's nearest neighbours.

    shrinkage: added to the product of the two norms, so that pairs that few users share count less.
    neighbours: of each item; weights of all others are 0.  decay: per event of age.
    Source: Deshpande and Karypis 2004, Item-based top-N recommendation algorithms.
    """

    def __init__(
        self, interactions: Interactions, *, neighbours: int = 100, shrinkage: float = 10.0, decay: float = 1.0
    ) -> None:
        gram = interactions.together(min(interactions.num_items, DENSE_ITEMS))
        norm = np.sqrt(np.diag(gram))
        product = norm[:, None] * norm + np.float32(shrinkage)
        weight = gram / np.maximum(product, np.finfo(np.float32).tiny)  # of items that nobody has 0
        np.fill_diagonal(weight, 0)
        if neighbours < len(weight):
            least = np.partition(weight, len(weight) - neighbours, axis=0)[len(weight) - neighbours]
            weight[weight < least] = 0
        super().__init__(interactions, weight, decay)


class Ease(ItemToItem):
    """The linear model without hidden layers: ridge regression of each item on all others, in closed form.

    l2: of the ridge.  decay: per event of age.
    Source: Steck 2019, Embarrassingly shallow autoencoders for sparse data (arXiv 1905.03375).
    """

    def __init__(self, interactions: Interactions, *, l2: float = 200.0, decay: float = 1.0) -> None:
        gram = interactions.together(min(interactions.num_items, DENSE_ITEMS)).astype(np.float64)
        gram[np.diag_indices_from(gram)] += l2
        inverse = np.linalg.inv(gram)
        weight = -inverse / np.diag(inverse)
        np.fill_diagonal(weight, 0)
        super().__init__(interactions, weight.astype(np.float32), decay)
