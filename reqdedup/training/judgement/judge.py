"""Figures of held-out rows: with intervals over users, slices, calibration, and the baselines beside the model.

    judgement = {"rows", "requests", "users", "items", "replicates",
                 "figures": [{"metric", "slice", "rows", "users", "value", "low", "high", "chance",
                              "baselines": {name: value}, "best_baseline", "gain", "gain_low", "gain_high"}, ...],
                 "calibration": {label: [{"decile", "rows", "predicted", "observed", "low", "high"}, ...]}}

Low and high are the middle 95% of a bootstrap over users; a gain is the model less the best baseline, with the users
drawn for both alike, positive if the model is better. Plain values: it goes into result.json as it is. What is not
known is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from reqdedup.training.judgement import measures
from reqdedup.training.judgement.measures import REPLICATES, UserWeights
from reqdedup.training.judgement.metrics import chance_log_rank
from reqdedup.training.judgement.outcomes import Outcomes, Ranked, Scored

FEW, RANKS_AT = 10, (10, 50, 100)
UNSEEN = "_unseen"
"""Ends the name of a figure for which items of the history are left out of the catalogue."""
LESS_IS_BETTER = ("mean_log_rank", "log_loss", "normalised_entropy", "calibration_error")
NO_RIVALRY = ("coverage", "popularity_ratio")
"""Figures that describe; more of them is neither better nor worse."""
HISTORIES = {"history under 5": (0, 5), "history 5 to 49": (5, 50), "history from 50": (50, math.inf)}
MOST_SLICES = 20
"""Values of a column that become slices of their own, the most frequent ones."""

Figures = dict[str, tuple[np.ndarray, float | None, np.ndarray]]
"""Name -> ([N] for each weighting of the users, what chance gives, which rows it is of: those whose label is known)."""


def judge(
    model: Outcomes, baselines: Mapping[str, Outcomes] | None = None, *, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Any]:
    """The judgement of a model's rows; see the head of this module. baselines: by name, of the same rows, in any order.

    replicates: of the bootstrap, 0 for no intervals.  Raises ValueError for a baseline of other rows.
    """
    baselines = {name: outcomes.in_order_of(model) for name, outcomes in (baselines or {}).items()}
    weights = UserWeights.bootstrap(model.user_id_B, replicates=replicates, seed=seed)
    rows = []
    for name, keep_B in _slices(model):
        rows += _of_slice(name, keep_B, model, baselines, weights)
    return {
        "rows": len(model),
        "requests": len(np.unique(np.stack([model.user_id_B, model.request_id_B]), axis=1).T),
        "users": weights.weight_NU.shape[1],
        "items": model.num_items if isinstance(model, Ranked) else None,
        "replicates": len(weights.weight_NU) - 1,
        "figures": rows,
        "calibration": _calibrations(model, weights) if isinstance(model, Scored) else {},
    }


def flat(judgement: Mapping[str, Any]) -> dict[str, float]:
    """The figures of all rows by name, each with `<name>_chance` if that is known."""
    figures: dict[str, float] = {"eval_rows": judgement["rows"]}
    if judgement["items"]:
        figures["eval_items"] = judgement["items"]
    for row in judgement["figures"]:
        if row["slice"] == "all":
            figures[row["metric"]] = math.nan if row["value"] is None else row["value"]
            if row["chance"] is not None:
                figures[row["metric"] + "_chance"] = row["chance"]
    return figures


def is_less_better(metric: str) -> bool:
    return metric.startswith(LESS_IS_BETTER)


def _slices(model: Outcomes) -> Iterable[tuple[str, np.ndarray]]:
    yield "all", np.ones(len(model), bool)
    for name, (least, end) in HISTORIES.items():
        keep_B = (model.history_length_B >= least) & (model.history_length_B < end)
        if keep_B.any() and not keep_B.all():
            yield name, keep_B
    for column, value_B in model.slice_B.items():
        values, counts = np.unique(value_B, return_counts=True)
        for value in values[np.argsort(-counts, kind="stable")][:MOST_SLICES]:
            yield f"{column} {value}", value_B == value


def _of_slice(
    name: str, keep_B: np.ndarray, model: Outcomes, baselines: Mapping[str, Outcomes], weights: UserWeights
) -> list[dict[str, Any]]:
    figures = _figures(model, keep_B, weights)
    rivals = {rule: _figures(outcomes, keep_B, weights) for rule, outcomes in baselines.items()}
    rows = []
    for metric, (value_N, chance, at) in figures.items():
        low, high = measures.interval(value_N)
        others = {rule: found[metric][0] for rule, found in rivals.items()}
        known = {rule: x_N for rule, x_N in others.items() if np.isfinite(x_N[0])}
        sign = -1 if is_less_better(metric) else 1
        best = max(known, key=lambda rule: sign * known[rule][0]) if known else None
        if metric.startswith(NO_RIVALRY):
            best = None
        gain_N = sign * (value_N - known[best]) if best is not None else np.full(1, np.nan)
        gain_low, gain_high = measures.interval(gain_N)
        rows.append(
            {
                "metric": metric,
                "slice": name,
                "rows": len(at),
                "users": len(np.unique(weights.user_B[at])),
                "value": _known(value_N[0]),
                "low": low,
                "high": high,
                "chance": chance,
                "baselines": {rule: _known(x_N[0]) for rule, x_N in others.items()},
                "best_baseline": best,
                "gain": _known(gain_N[0]),
                "gain_low": gain_low,
                "gain_high": gain_high,
            }
        )
    return rows


def _figures(outcomes: Outcomes, keep_B: np.ndarray, weights: UserWeights) -> Figures:
    if isinstance(outcomes, Scored):
        return _scored_figures(outcomes, keep_B, weights)
    assert isinstance(outcomes, Ranked)
    return _ranked_figures(outcomes, keep_B, weights)


def _scored_figures(outcomes: Scored, keep_B: np.ndarray, weights: UserWeights) -> Figures:
    figures: Figures = {}
    for column, label in enumerate(outcomes.labels):
        at = np.flatnonzero(keep_B & ~np.isnan(outcomes.label_BL[:, column]))
        logit_B, label_B, drawn = outcomes.logit_BL[at, column], outcomes.label_BL[at, column], weights.of_rows(at)
        user_B = weights.user_B[at]
        _, request_B = np.unique(np.stack([user_B, outcomes.request_id_B[at]]), axis=1, return_inverse=True)
        loss_N, rate_N = drawn.mean(measures.log_losses(logit_B, label_B)), drawn.mean(label_B)
        base_N = measures.entropy(rate_N)
        with np.errstate(invalid="ignore", divide="ignore"):
            relative_N = np.where(base_N > 0, loss_N / base_N, np.nan)
        probability_B = 1 / (1 + np.exp(-logit_B))
        figures[f"auc_{label}"] = measures.auc(logit_B, label_B, drawn), 0.5, at
        figures[f"user_auc_{label}"] = measures.auc_within(logit_B, label_B, user_B, drawn), 0.5, at
        figures[f"request_auc_{label}"] = measures.auc_within(logit_B, label_B, request_B.ravel(), drawn), 0.5, at
        figures[f"log_loss_{label}"] = loss_N, _known(base_N[0]), at
        figures[f"normalised_entropy_{label}"] = relative_N, 1.0, at
        figures[f"calibration_error_{label}"] = measures.calibration_error(probability_B, label_B, drawn), None, at
    return figures


def _ranked_figures(outcomes: Ranked, keep_B: np.ndarray, weights: UserWeights) -> Figures:
    figures: Figures = {}
    for rank_all_B, suffix in ((outcomes.rank_B, ""), (outcomes.unseen_rank_B, UNSEEN)):
        at = np.flatnonzero(keep_B & ~np.isnan(rank_all_B))
        rank_B, drawn = rank_all_B[at], weights.of_rows(at)
        chance = chance_log_rank(outcomes.num_items) if not suffix else None
        figures["mean_log_rank" + suffix] = drawn.mean(np.log(rank_B)), chance, at
        for k in RANKS_AT:
            chances = measures.chance_gains(outcomes.num_items, k)
            for metric, gain_B in measures.gains(rank_B, k).items():
                if k != FEW and not metric.startswith("recall"):
                    continue  # of many items only whether the right one is among them
                figures[metric + suffix] = drawn.mean(gain_B), chances[metric] if not suffix else None, at
    at = np.flatnonzero(keep_B)
    top_BK, k = outcomes.top_BK[at], outcomes.top_BK.shape[1]
    nothing = np.full(1, np.nan)
    shown = len(np.unique(top_BK)) / max(outcomes.num_items, 1)
    figures[f"coverage_at_{k}"] = (np.full(1, shown) if len(at) else nothing), None, at
    wanted = _mean(outcomes.own_count_B[at])
    recommended = _mean(outcomes.count_C[top_BK]) if top_BK.size else math.nan
    ratio = recommended / wanted if wanted else math.nan
    figures[f"popularity_ratio_at_{k}"] = np.full(1, ratio), None, at
    return figures


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _calibrations(model: Scored, weights: UserWeights) -> dict[str, Any]:
    found = {}
    for column, label in enumerate(model.labels):
        at = np.flatnonzero(~np.isnan(model.label_BL[:, column]))
        probability_B = 1 / (1 + np.exp(-model.logit_BL[at, column]))
        found[label] = measures.calibration(probability_B, model.label_BL[at, column], weights.of_rows(at))
    return found


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
