"""The relevance-diversity curve: one slate configuration at several weights of a term, over many requests.

A point is a configuration and the means of its slates' figures (`slate_measures`); the point without terms and rules,
the order of the scores, comes first. What a weight is worth is read off: where the relevance that is given up begins to
buy no more variety.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reqdedup.rerank.config import SlateConfig, kind_of
from reqdedup.rerank.measures import slate_measures
from reqdedup.rerank.slate import rerank

SCORES_ALONE = "scores alone"


@dataclass(frozen=True)
class SweepPoint:
    """name: of the configuration.  figures: means over the requests in which each applies.  requests: counted."""

    name: str
    figures: dict[str, float]
    requests: int


def weight_grid(config: SlateConfig, kind: str, weights: Iterable[float]) -> dict[str, SlateConfig]:
    """The configuration with each of these weights of its term of this kind, by name.

    Raises ValueError if it has no such term, or a weight is not allowed.
    """
    kinds = [kind_of(term) for term in config.terms]
    if kind not in kinds:
        raise ValueError(
            f"sweep: a term of the configuration ({', '.join(kinds) or 'it has none'}) required, found {kind}"
        )
    at = kinds.index(kind)
    return {
        f"{kind} {weight:g}": replace(
            config, terms=(*config.terms[:at], replace(config.terms[at], weight=weight), *config.terms[at + 1 :])
        )
        for weight in weights
    }


def sweep(
    configs: Mapping[str, SlateConfig],
    scores: np.ndarray,
    *,
    item_id: np.ndarray,
    vectors: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    row_offsets: np.ndarray,
    measured: Sequence[str] = (),
) -> list[SweepPoint]:
    """A point of each configuration, after that of the scores alone; arguments as of `rerank`.

    measured: columns whose variety is told besides those that a configuration reads.
    Raises ValueError for no configuration or a measured column that is not there, and as `rerank` does.
    """
    if not configs:
        raise ValueError("sweep: at least one configuration required, found none")
    columns, first = dict(columns or {}), next(iter(configs.values()))
    if unknown := [name for name in measured if name not in columns]:
        there = ", ".join(columns) or "none"
        raise ValueError(f"sweep: columns of the candidates ({there}) to measure required, found {', '.join(unknown)}")
    names = dict.fromkeys([*measured, *(name for config in configs.values() for name in config.columns)])
    plain = SlateConfig(length=first.length, window=first.window)
    points = []
    for name, config in {SCORES_ALONE: plain, **configs}.items():
        slate = rerank(config, scores, item_id=item_id, vectors=vectors, columns=columns, row_offsets=row_offsets)
        found: dict[str, list[float]] = {}
        for r in range(len(row_offsets) - 1):
            rows = slice(row_offsets[r], row_offsets[r + 1])
            figures = slate_measures(
                _from_zero(scores[rows]),
                slate.row[slate.offsets_R1[r] : slate.offsets_R1[r + 1]] - row_offsets[r],
                window=config.window,
                vectors=None if vectors is None else vectors[rows],
                columns={column: columns[column][rows] for column in names},
            )
            for figure, value in figures.items():
                found.setdefault(figure, []).append(value)
        means = {figure: float(np.mean(values)) for figure, values in found.items()}
        if len(slate.relaxed):
            means["relaxed_ratio"] = float((slate.relaxed > 0).mean())
        points.append(SweepPoint(name, means, len(row_offsets) - 1))
    return points


def _from_zero(score_N: np.ndarray) -> np.ndarray:
    """Scores as gains: finite, none below 0, so that the ratio of discounted gains is one."""
    is_finite_N = np.isfinite(score_N)
    lowest = float(score_N[is_finite_N].min()) if is_finite_N.any() else 0.0
    return np.where(is_finite_N, score_N - min(lowest, 0.0), 0.0)
