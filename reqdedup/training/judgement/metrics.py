"""What held-out users say about a model: AUC and log loss for ranking; ranks, recall@k, mean log-rank for retrieval.

Mean log-rank is the steady one of the retrieval metrics: recall@10 looks at few rows and is noisy. Chance is given for
each, so that a report can put it beside the figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def auc(score_B: torch.Tensor, label_B: torch.Tensor) -> float:
    """Area under the ROC curve; rows with a NaN label are left out, ties count half. NaN if one class is missing.

    The probability that a positive row scores above a negative one (Mann-Whitney).
    """
    score_B, label_B = _labelled(score_B, label_B)
    num_positive = int((label_B > 0).sum())
    num_negative = len(label_B) - num_positive
    if num_positive == 0 or num_negative == 0:
        return math.nan
    _, group_B, size = torch.unique(score_B, return_inverse=True, return_counts=True)  # groups in rising order
    mean_rank = size.cumsum(0).double() - (size.double() - 1) / 2  # 1-based, ties share their mean
    rank_sum = float(mean_rank[group_B][label_B > 0].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def log_loss(logit_B: torch.Tensor, label_B: torch.Tensor) -> float:
    """Mean binary cross-entropy [nats per row] of logits; rows with a NaN label are left out. NaN without any row."""
    logit_B, label_B = _labelled(logit_B, label_B)
    if len(label_B) == 0:
        return math.nan
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logit_B.double(), label_B.double()))


def base_log_loss(label_B: torch.Tensor) -> float:
    """Log loss [nats per row] of the constant prediction "the mean of the labels": chance for `log_loss`."""
    label_B = label_B[~torch.isnan(label_B)].double()
    if len(label_B) == 0:
        return math.nan
    rate = float(label_B.mean())
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)


def ranks_in_catalogue(
    user_RD: torch.Tensor,
    positive_BD: torch.Tensor,
    catalogue_CD: torch.Tensor,
    *,
    request_of_row_B: torch.Tensor,
    item_id_B: torch.Tensor,
    catalogue_item_id_C: torch.Tensor,
    chunk: int = 128,
) -> torch.Tensor:
    """Rank of each row's own item among itself and the catalogue, [B] float64, 1 is best; ties count half.

    The row's item is left out of the catalogue if that holds it, so the best rank is 1 and the worst the number of
    other items plus 1. Memory: `chunk` rows x C scores.
    """
    ranks = []
    for start in range(0, len(item_id_B), chunk):
        rows = slice(start, start + chunk)
        user_bD = user_RD[request_of_row_B[rows]]
        own_b1 = (user_bD * positive_BD[rows]).sum(1, keepdim=True)
        score_bC = user_bD @ catalogue_CD.mT
        is_other_bC = catalogue_item_id_C != item_id_B[rows, None]
        above = ((score_bC > own_b1) & is_other_bC).sum(1)
        tied = ((score_bC == own_b1) & is_other_bC).sum(1)
        ranks.append(1 + above + tied.double() / 2)
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.float64)


def recall_at_k(rank_B: torch.Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Share of rows whose item ranks k-th or better, per k; NaN without any row."""
    return {k: float((rank_B <= k).double().mean()) if len(rank_B) else math.nan for k in ks}


def mean_log_rank(rank_B: torch.Tensor) -> float:
    """Mean of log rank [nats]; NaN without any row."""
    return float(rank_B.double().log().mean()) if len(rank_B) else math.nan


def chance_log_rank(num_candidates: int) -> float:
    """Mean log-rank [nats] of random scores over `num_candidates` items, the row's own among them."""
    return math.lgamma(num_candidates + 1) / num_candidates if num_candidates else math.nan


def _labelled(value_B: torch.Tensor, label_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if value_B.shape != label_B.shape:
        raise ValueError(f"one value per label required, found {tuple(value_B.shape)} and {tuple(label_B.shape)}")
    is_labelled_B = ~torch.isnan(label_B)
    return value_B[is_labelled_B], label_B[is_labelled_B]
