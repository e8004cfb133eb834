"""Where values stand among distinct ones that rise: the dense number of an id."""

from __future__ import annotations

import numpy as np


def places_in(value_N: np.ndarray, rising_V: np.ndarray) -> np.ndarray:
    """[N] int64: where each value stands, -1 if it does not. rising_V: distinct.

    `reqdedup.ops.places.places_of` does it with tensors.
    """
    if not len(rising_V):
        return np.full(len(value_N), -1)
    at_N = np.searchsorted(rising_V, value_N).clip(max=len(rising_V) - 1)
    return np.where(rising_V[at_N] == value_N, at_N, -1)
