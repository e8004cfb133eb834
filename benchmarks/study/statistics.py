"""Paired differences over seeds with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

T_95 = [
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
]
"""Student's t, two-sided 95%, for 2 to 30 pairs."""


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
    half = T_95[min(pairs - 2, len(T_95) - 1)] * deviation / math.sqrt(pairs) if pairs > 1 else math.inf
    return Difference(mean=mean, low=mean - half, high=mean + half, deviation=deviation, pairs=pairs)
