"""Items by popularity, and what followed the last item."""

from __future__ import annotations

import numpy as np

from reqdedup.models.baselines.interactions import Histories, Interactions, broken_by_popularity


class Popularity:
    """Every request gets the items that were positives most often."""

    def __init__(self, interactions: Interactions) -> None:
        self._popularity_V = interactions.popularity

    def scores(self, histories: Histories) -> np.ndarray:
        """[R, V] float32."""
        return np.broadcast_to(self._popularity_V, (len(histories), len(self._popularity_V)))


class LastItem:
    """A Markov chain of first order: the score of an item is how often it followed the history's last one, over how
    often that was followed. An unknown or absent last item gives popularity."""

    def __init__(self, interactions: Interactions) -> None:
        histories, self._num_items = interactions.histories, interactions.num_items
        self._popularity_V = interactions.popularity
        before, after = histories.item_T[:-1], histories.item_T[1:]
        is_pair = (np.diff(histories.request_of_event) == 0) & (before >= 0) & (after >= 0)
        key, self._count = np.unique(before[is_pair] * self._num_items + after[is_pair], return_counts=True)
        before, self._after = key // max(self._num_items, 1), key % max(self._num_items, 1)
        self._offsets = np.searchsorted(before, np.arange(self._num_items + 1))

    def scores(self, histories: Histories) -> np.ndarray:
        """[R, V] float32."""
        score_RV = np.zeros((len(histories), self._num_items), np.float32)
        for r, (begin, end) in enumerate(zip(histories.offsets_R1[:-1], histories.offsets_R1[1:])):
            last = histories.item_T[end - 1] if end > begin else -1
            if last >= 0:
                at = slice(self._offsets[last], self._offsets[last + 1])
                score_RV[r, self._after[at]] = self._count[at] / max(self._count[at].sum(), 1)
        return broken_by_popularity(score_RV, self._popularity_V)
