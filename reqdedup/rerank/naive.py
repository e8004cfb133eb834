"""The slate of one request by its plain definition: everything is computed anew for every candidate at every pick."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from reqdedup.rerank.config import (
    HardSpacing,
    LogVolume,
    Mmr,
    PrefixOverlap,
    Quota,
    SlateConfig,
    SoftSpacing,
    TermConfig,
    Volume,
)
from reqdedup.rerank.terms import SMALLEST_SQUARED_RESIDUAL


def slate(
    config: SlateConfig,
    scores: np.ndarray,
    *,
    item_id: np.ndarray,
    vectors: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> list[int]:
    """Rows of one request in slate order; arguments as in `rerank`, all finite, without `standardise`."""
    columns, left = columns or {}, sorted(range(len(scores)), key=lambda row: item_id[row])
    picks: list[int] = []
    places = min(config.length, len(scores))
    while len(picks) < places:
        for kept in range(len(config.rules), -1, -1):
            rules = config.rules[:kept]
            fitting = [row for row in left if all(_keeps(rule, row, picks, left, places, columns) for rule in rules)]
            if fitting:
                break
        window = picks[-config.window :]
        best = max(
            fitting,
            key=lambda row: (
                scores[row] + sum(term.weight * _value(term, row, window, vectors, columns) for term in config.terms)
            ),
        )  # the first of equals
        picks.append(best)
        left.remove(best)
    return picks


def _value(
    term: TermConfig, row: int, window: list[int], vectors: np.ndarray | None, columns: Mapping[str, np.ndarray]
) -> float:
    if isinstance(term, Volume | LogVolume):
        assert vectors is not None
        residual = vectors[row]
        if window:
            basis = vectors[window].T
            residual = residual - basis @ np.linalg.lstsq(basis, residual, rcond=1e-9)[0]
        squared = float(residual @ residual)
        return math.sqrt(squared) if isinstance(term, Volume) else math.log(max(squared, SMALLEST_SQUARED_RESIDUAL))
    if isinstance(term, Mmr):
        assert vectors is not None
        return -max((_cosine(vectors[row], vectors[pick]) for pick in window), default=0.0)
    if isinstance(term, SoftSpacing):
        flag = columns[term.column]
        return -float(flag[row]) * sum(float(flag[pick]) / d for d, pick in enumerate(reversed(window), start=1))
    assert isinstance(term, PrefixOverlap)
    levels = [columns[name] for name in term.columns]
    shared = [
        next((depth for depth, level in enumerate(levels) if level[row] != level[pick]), len(levels)) for pick in window
    ]
    return -max(shared, default=0) / len(levels)


def _keeps(
    rule: HardSpacing | Quota,
    row: int,
    picks: list[int],
    left: list[int],
    places: int,
    columns: Mapping[str, np.ndarray],
) -> bool:
    value = columns[rule.column]
    if isinstance(rule, HardSpacing):
        return all(value[pick] != value[row] for pick in picks[-rule.gap :])
    if rule.at_most is not None:
        if rule.value is not None and value[row] != rule.value:
            return True
        return sum(value[pick] == value[row] for pick in picks) < rule.at_most
    there = sum(value[pick] == rule.value for pick in picks)
    reachable = min(rule.at_least or 0, there + sum(value[other] == rule.value for other in left))
    return bool(value[row] == rule.value) or reachable - there < places - len(picks)


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    lengths = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / lengths if lengths else 0.0
