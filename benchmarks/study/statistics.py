"""Paired differences over seeds with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t, two-sided 95%, by number of pairs."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean over the pairs, its 95% interval (infinite for one pair), and the standard deviation between pairs."""

    mean: float
    low: float
    high: float
    deviation: float
    pairs: int


def paired(values: Sequence[float], references: Sequence[float], *, relative: bool) -> Difference:
    """values - references, pair by pair; relative: in % of the reference. Pairs are seeds: same log, same weights."""
    if len(values) != len(references) or not values:
        raise ValueError(f"as many values as references required, found {len(values)} and {len(references)}")
    difference = np.asarray(values, float) - np.asarray(references, float)
    if relative:
        difference = 100 * difference / np.asarray(references, float)
    pairs, mean = len(difference), float(difference.mean())
    deviation = float(difference.std(ddof=1)) if pairs > 1 else math.nan
    half = T_95.get(pairs, 1.96) * deviation / math.sqrt(pairs) if pairs > 1 else math.inf
    return Difference(mean=mean, low=mean - half, high=mean + half, deviation=deviation, pairs=pairs)
