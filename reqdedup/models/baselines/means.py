"""Ranking without a model: the mean label of an item, and of the user's earlier rows."""

from __future__ import annotations

import numpy as np

from reqdedup.arrays.places import places_in

PRIOR_ROWS = 10.0
"""Rows of the mean over all items that each item's mean is drawn to."""
USER_PRIOR_ROWS = 10.0
"""Rows without a difference that each user's own difference is drawn to."""


class ItemMean:
    """Mean label of each item, drawn to the mean over all rows by PRIOR_ROWS of it.

    item_id_V: [V] int64, rising.  sum_V, count_V: of the labels that are known.
    """

    def __init__(self, item_id_V: np.ndarray, sum_V: np.ndarray, count_V: np.ndarray) -> None:
        self._item_id_V = item_id_V
        rows = float(count_V.sum())
        self.mean = float(sum_V.sum()) / rows if rows else float("nan")
        self._mean_V = (sum_V + PRIOR_ROWS * self.mean) / (count_V + PRIOR_ROWS)

    def predict(self, item_id_B: np.ndarray) -> np.ndarray:
        """[B] float64 in [0, 1]; an item that was not there gets the mean over all rows."""
        if not len(self._item_id_V):
            return np.full(len(item_id_B), self.mean)
        at_B = places_in(item_id_B, self._item_id_V)
        return np.where(at_B >= 0, self._mean_V[at_B], self.mean)


class ItemUserMean:
    """The item's mean, plus by how much the user's labels were above their items' means in earlier requests.

    The user's mean difference is drawn to 0 by USER_PRIOR_ROWS rows. A request sees what the user did at an earlier
    time, not at the same.
    """

    def __init__(self, item_mean: ItemMean) -> None:
        self._item_mean = item_mean

    def predict(
        self, user_id_B: np.ndarray, time_B: np.ndarray, item_id_B: np.ndarray, label_B: np.ndarray
    ) -> np.ndarray:
        """[B] float64, for all rows of some users; a sum that may lie a little outside of 0 to 1. label_B: NaN if it is
        not known."""
        base_B = self._item_mean.predict(item_id_B)
        order = np.lexsort((time_B, user_id_B))
        user, time = user_id_B[order], time_B[order]
        difference = np.nan_to_num(label_B[order] - base_B[order])
        is_known = ~np.isnan(label_B[order])
        before = np.concatenate([[0.0], np.cumsum(np.where(is_known, difference, 0.0))])
        known_before = np.concatenate([[0], np.cumsum(is_known)])
        is_new_user = np.diff(user, prepend=user[:1]) != 0
        is_new_time = is_new_user | (np.diff(time, prepend=time[:1]) != 0)
        place = np.arange(len(order))
        of_user = np.maximum.accumulate(np.where(is_new_user, place, 0))
        of_time = np.maximum.accumulate(np.where(is_new_time, place, 0))
        rows = known_before[of_time] - known_before[of_user]
        own = (before[of_time] - before[of_user]) / (rows + USER_PRIOR_ROWS)
        predicted_B = np.empty(len(order))
        predicted_B[order] = base_B[order] + own
        return predicted_B
