"""What the baselines of retrieval are fitted on, and what they score: items that users engaged with, in order.

user 0: [a b c]        item_T       = [0 1 2 3]
user 1: [d]            offsets_R1   = [0, 3, 4]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Histories:
    """Histories of R requests, packed, oldest event first.

    item_T: [T] int64, numbers of items, -1 for one that is not known.  offsets_R1: [R + 1] int64.
    """

    item_T: np.ndarray
    offsets_R1: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets_R1) - 1

    @classmethod
    def of_lists(cls, lists: list[list[int]]) -> Histories:
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
        return cls(np.array([item for one in lists for item in one], np.int64), offsets)

    def part(self, first: int, end: int) -> Histories:
        """Requests first to end - 1, as views."""
        offsets = self.offsets_R1[first : end + 1]
        return Histories(self.item_T[offsets[0] : offsets[-1]], offsets - offsets[0])

    @cached_property
    def request_of_event(self) -> np.ndarray:
        """[T] the request of each event."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets_R1))

    def weights(self, num_items: int, *, decay: float = 1.0) -> np.ndarray:
        """[R, num_items] float32: decay^age of each item's newest event, age 0 the last event; 0 where there is none.

        Items outside 0 .. num_items - 1 are left out.
        """
        age_T = self.offsets_R1[1:][self.request_of_event] - 1 - np.arange(len(self.item_T))
        is_known_T = (self.item_T >= 0) & (self.item_T < num_items)
        weights = np.zeros((len(self), num_items), np.float32)
        # of several events of an item the last assignment stays, which is the newest event's
        weights[self.request_of_event[is_known_T], self.item_T[is_known_T]] = decay ** age_T[is_known_T]
        return weights


@dataclass(frozen=True)
class Interactions:
    """What training users engaged with, in order, and how popular each item was.

    histories: of each training user, one.  count_V: [V] how often each item was a positive; V items are numbered by it,
    the most popular first, so that a method whose cost grows with V squared takes the first ones.
    """

    histories: Histories
    count_V: np.ndarray

    @property
    def num_items(self) -> int:
        return len(self.count_V)

    @cached_property
    def popularity(self) -> np.ndarray:
        """[V] float32 in [0, 1)."""
        return (self.count_V / (self.count_V.max(initial=0) + 1.0)).astype(np.float32)

    def together(self, num_items: int) -> np.ndarray:
        """[num_items, num_items] float32: users who engaged with both of two items; of one on the diagonal."""
        gram = np.zeros((num_items, num_items), np.float32)
        for first in range(0, len(self.histories), 2048):
            weights = self.histories.part(first, min(first + 2048, len(self.histories))).weights(num_items)
            gram += weights.T @ weights
        return gram


def broken_by_popularity(score_RV: np.ndarray, popularity_V: np.ndarray) -> np.ndarray:
    """The scores, [R, V] float32, with ties broken by popularity: a hundred-thousandth of the largest score at most."""
    scale = np.abs(score_RV).max(initial=0.0) or 1.0
    return score_RV + np.float32(1e-5 * scale) * popularity_V
