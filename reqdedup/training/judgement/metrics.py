"""AUC of one column of scores, and what mean log-rank is by chance; a run's figures are in `measures`."""

from __future__ import annotations

import math

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


def chance_log_rank(num_candidates: int) -> float:
    """Mean log-rank [nats] of random scores over `num_candidates` items, the row's own among them."""
    return math.lgamma(num_candidates + 1) / num_candidates if num_candidates else math.nan


def _labelled(value_B: torch.Tensor, label_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if value_B.shape != label_B.shape:
        raise ValueError(f"one value per label required, found {tuple(value_B.shape)} and {tuple(label_B.shape)}")
    is_labelled_B = ~torch.isnan(label_B)
    return value_B[is_labelled_B], label_B[is_labelled_B]
