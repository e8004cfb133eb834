"""Figures of held-out rows for many weightings of the users at once: the first all ones, the others of a bootstrap.

A figure is a function of rows and of `UserWeights`, and gives [N], one value for each weighting. A mean needs only the
sum and count of each user; the area under a curve sorts the rows once. Equal to plain loops over rows in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

REPLICATES = 200
DECILES = 10


@dataclass(frozen=True)
class UserWeights:
    """weight_NU: [N, U] float64, how often each user is drawn, the first row all ones.  user_B: [B] number of each
    row's user."""

    weight_NU: np.ndarray
    user_B: np.ndarray

    @classmethod
    def bootstrap(cls, user_id_B: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0) -> UserWeights:
        """Users drawn with replacement, as many as there are, `replicates` times."""
        users, user_B = np.unique(user_id_B, return_inverse=True)
        rng = np.random.default_rng([seed, 29])
        drawn: list[np.ndarray] = [np.ones(len(users))]
        for _ in range(replicates if len(users) else 0):
            drawn.append(np.bincount(rng.integers(0, len(users), len(users)), minlength=len(users)))
        return cls(np.stack(drawn).astype(np.float64), user_B)

    def of_rows(self, keep: np.ndarray) -> UserWeights:
        """The same draws for some of the rows, by mask or number."""
        return UserWeights(self.weight_NU, self.user_B[keep])

    def sums(self, value_B: np.ndarray) -> np.ndarray:
        """[N] weighted sums over the rows."""
        return self.weight_NU @ np.bincount(self.user_B, weights=value_B, minlength=self.weight_NU.shape[1])

    def mean(self, value_B: np.ndarray) -> np.ndarray:
        """[N] weighted means over the rows; NaN without any."""
        with np.errstate(invalid="ignore"):
            return self.sums(value_B) / self.sums(np.ones(len(self.user_B)))


def auc(score_B: np.ndarray, label_B: np.ndarray, weights: UserWeights) -> np.ndarray:
    """[N] area under the ROC curve, ties count half; NaN if a class is missing.

    label_B: 0 to 1, positive above 0.
    """
    _, group_B = np.unique(score_B, return_inverse=True)
    is_positive_B = label_B > 0
    values = []
    for weight_U in weights.weight_NU:
        weight_B = weight_U[weights.user_B]
        positive_G = np.bincount(group_B, weights=weight_B * is_positive_B)
        negative_G = np.bincount(group_B, weights=weight_B * ~is_positive_B)
        pairs = positive_G.sum() * negative_G.sum()
        above = positive_G @ (np.cumsum(negative_G) - negative_G / 2)
        values.append(above / pairs if pairs else np.nan)
    return np.array(values)


def auc_within(score_B: np.ndarray, label_B: np.ndarray, group_B: np.ndarray, weights: UserWeights) -> np.ndarray:
    """[N] mean over groups that have both classes of the AUC within each, every group the same weight.

    group_B: users, or requests; a group belongs to one user.
    """
    groups, number_B = np.unique(group_B, return_inverse=True)
    order = np.lexsort((score_B, number_B))
    number, score, is_positive = number_B[order], score_B[order], label_B[order] > 0
    is_new = np.diff(number, prepend=number[:1] - 1) != 0
    is_new_tie = is_new | (np.diff(score, prepend=score[:1]) != 0)
    tie = np.cumsum(is_new_tie) - 1
    rank = np.arange(1, len(order) + 1) - np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    tie_rank = np.bincount(tie, weights=rank) / np.maximum(np.bincount(tie), 1) if len(order) else np.zeros(0)
    size_G = len(groups)
    positives_G = np.bincount(number, weights=is_positive, minlength=size_G)
    negatives_G = np.bincount(number, minlength=size_G) - positives_G
    rank_sum_G = np.bincount(number, weights=tie_rank[tie] * is_positive if len(order) else None, minlength=size_G)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc_G = (rank_sum_G - positives_G * (positives_G + 1) / 2) / (positives_G * negatives_G)
    has_both_G = (positives_G > 0) & (negatives_G > 0)
    first_G = np.zeros(size_G, np.int64)
    first_G[number_B[::-1]] = np.arange(len(number_B))[::-1]  # the first row of each group
    return weights.of_rows(first_G[has_both_G]).mean(auc_G[has_both_G])


def log_losses(logit_B: np.ndarray, label_B: np.ndarray) -> np.ndarray:
    """[B] binary cross-entropy [nats] of each row."""
    return np.maximum(logit_B, 0) - logit_B * label_B + np.log1p(np.exp(-np.abs(logit_B)))


def entropy(rate: np.ndarray) -> np.ndarray:
    """Entropy [nats] of a coin; 0 at both ends, NaN of one that is not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(p == 0, 0.0, -p * np.log(p)) for p in (rate, 1 - rate)]
    return terms[0] + terms[1]


def decile_of(probability_B: np.ndarray) -> np.ndarray:
    """[B] 0 to 9: tenths of the rows by predicted probability; rows that are equal stay together."""
    edges = np.quantile(probability_B, np.arange(1, DECILES) / DECILES) if len(probability_B) else np.zeros(DECILES - 1)
    return np.searchsorted(edges, probability_B, side="right")


def calibration(
    probability_B: np.ndarray, label_B: np.ndarray, weights: UserWeights
) -> list[dict[str, float | int | None]]:
    """A row per decile of the prediction that has rows: decile (1 to 10), rows, predicted and observed mean, and the
    interval of the observed one."""
    decile_B = decile_of(probability_B)
    rows: list[dict[str, float | int | None]] = []
    for decile in range(DECILES):
        at = np.flatnonzero(decile_B == decile)
        if not len(at):
            continue
        observed = weights.of_rows(at).mean(label_B[at])
        low, high = interval(observed)
        rows.append(
            {
                "decile": decile + 1,
                "rows": len(at),
                "predicted": float(probability_B[at].mean()),
                "observed": float(observed[0]),
                "low": low,
                "high": high,
            }
        )
    return rows


def calibration_error(probability_B: np.ndarray, label_B: np.ndarray, weights: UserWeights) -> np.ndarray:
    """[N] mean over rows of |predicted - observed| of the row's decile."""
    decile_B, error = decile_of(probability_B), np.zeros(len(weights.weight_NU))
    for decile in range(DECILES):
        at = np.flatnonzero(decile_B == decile)
        error += np.abs(weights.of_rows(at).sums(probability_B[at] - label_B[at]))
    with np.errstate(invalid="ignore"):
        return error / weights.sums(np.ones(len(label_B)))


def gains(rank_B: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Of each row, whose own item is the only one that counts: recall, NDCG and MRR at k, [B] each."""
    is_in_B = rank_B <= k
    return {
        f"recall_at_{k}": is_in_B.astype(np.float64),
        f"ndcg_at_{k}": np.where(is_in_B, 1 / np.log2(1 + rank_B), 0.0),
        f"mrr_at_{k}": np.where(is_in_B, 1 / rank_B, 0.0),
    }


def chance_gains(num_items: int, k: int) -> dict[str, float]:
    """What a random order of `num_items` items would give, by the names of `gains`."""
    rank = np.arange(1, min(k, num_items) + 1)
    count = max(num_items, 1)
    return {
        f"recall_at_{k}": min(1.0, k / count),
        f"ndcg_at_{k}": float((1 / np.log2(1 + rank)).sum()) / count,
        f"mrr_at_{k}": float((1 / rank).sum()) / count,
    }


def interval(value_N: np.ndarray | Sequence[float]) -> tuple[float | None, float | None]:
    """The middle 95% of the replicates, those after the first; (None, None) if there is none."""
    replicates = np.asarray(value_N)[1:]
    replicates = replicates[np.isfinite(replicates)]
    if len(replicates) < 2:
        return None, None
    low, high = np.quantile(replicates, (0.025, 0.975))
    return float(low), float(high)
