"""Matrix factorisation of implicit feedback by alternating least squares, through the package `implicit`."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from reqdedup.models.baselines.interactions import Histories, Interactions, broken_by_popularity


class ImplicitFactors:
    """iALS: users and items as vectors; a user who was not there is solved for from the history.

    Needs the extra `baselines`. Source: Hu, Koren, Volinsky 2008, Collaborative filtering for implicit feedback
    datasets.
    """

    def __init__(
        self,
        interactions: Interactions,
        *,
        factors: int = 64,
        l2: float = 0.05,
        alpha: float = 5.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        self._popularity_V = interactions.popularity
        with threadpool_limits(1, "blas"):  # it has threads of its own, which BLAS's would fight
            self._model = AlternatingLeastSquares(
                factors=factors, regularization=l2, alpha=alpha, iterations=iterations, random_state=seed, num_threads=1
            )
            self._model.fit(_matrix(interactions.histories, interactions.num_items), show_progress=False)

    @staticmethod
    def is_installed() -> bool:
        return importlib.util.find_spec("implicit") is not None

    def scores(self, histories: Histories) -> np.ndarray:
        """[R, V] float32."""
        matrix = _matrix(histories, len(self._popularity_V))
        if not len(histories):
            return np.zeros(matrix.shape, np.float32)
        users = self._model.recalculate_user(np.arange(len(histories)), matrix)
        return broken_by_popularity(np.asarray(users @ self._model.item_factors.T), self._popularity_V)


def _matrix(histories: Histories, num_items: int) -> Any:
    """[R, num_items] as a sparse matrix of ones."""
    from scipy.sparse import csr_matrix

    is_known_T = histories.item_T >= 0
    key = np.unique(histories.request_of_event[is_known_T] * num_items + histories.item_T[is_known_T])
    places = (key // max(num_items, 1), key % max(num_items, 1))
    return csr_matrix((np.ones(len(key), np.float32), places), shape=(len(histories), num_items))
