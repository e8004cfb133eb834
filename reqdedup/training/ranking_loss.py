"""Losses of ranking over one label: each row alone, or a positive row beside the negatives of its group.

    cross_entropy   every known row     weight * (1 - p_t)^gamma * (-log p_t), p_t the probability of what happened
    pairwise        a positive row i    mean over the negatives j of its group of log(1 + exp(s_j - s_i))
    listwise        a positive row i    log(exp(s_i) + sum over the negatives j of its group of exp(s_j)) - s_i

A group is a request, or a user's rows of the step. A positive row's label is above 0, a negative one's is 0, a missing
one (NaN) is neither. A positive row without a negative is no term. Pairwise is BPR over what was shown, listwise the
softmax in a request; both order rows and say nothing of probabilities, so their logits need a calibration of their own.
`naive_losses` is the definition, plain loops.
Source: Lin et al. 2017 (arXiv 1708.02002), focal loss; Rendle et al. 2009 (arXiv 1205.2618), BPR.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

RankingLoss = Literal["cross_entropy", "pairwise", "listwise"]
Within = Literal["request", "user"]

Terms = tuple[torch.Tensor, torch.Tensor]
"""Loss of each row [nats], [B], 0 if it is no term, and which rows are terms, [B] bool."""


def cross_entropy_losses(
    logit_B: torch.Tensor, label_B: torch.Tensor, *, gamma: float = 0.0, positive_weight: float = 1.0
) -> Terms:
    """gamma: 0, or at least 1: how much rows count less that the model is sure of.  positive_weight: of a label of 1
    beside a label of 0; the mean over terms divides by their number, not by weights."""
    is_term_B = ~torch.isnan(label_B)
    label_B = label_B.nan_to_num().to(logit_B.dtype)
    loss_B = F.binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")
    if gamma:
        missed_B = torch.sigmoid(-logit_B) * label_B + torch.sigmoid(logit_B) * (1 - label_B)
        loss_B = loss_B * missed_B**gamma
    if positive_weight != 1:
        loss_B = loss_B * (1 + (positive_weight - 1) * label_B)
    return torch.where(is_term_B, loss_B, loss_B * 0.0), is_term_B


def pairwise_losses(logit_B: torch.Tensor, label_B: torch.Tensor, group_of_row_B: torch.Tensor) -> Terms:
    """group_of_row_B: [B] int64 from 0. Computed on the pairs that there are, and no others."""
    by_group = group_of_row_B.argsort(stable=True)
    negative = by_group[label_B[by_group] == 0]
    positive = by_group[label_B[by_group] > 0]
    num_groups = int(group_of_row_B.max()) + 1 if len(group_of_row_B) else 0
    count_G = group_of_row_B[negative].bincount(minlength=num_groups)
    begin_G = count_G.cumsum(0) - count_G
    group_P = group_of_row_B[positive]
    count_P = count_G[group_P]
    pair_end_P = count_P.cumsum(0)
    positive_of_pair = torch.repeat_interleave(torch.arange(len(positive), device=logit_B.device), count_P)
    shift_P = begin_G[group_P] - (pair_end_P - count_P)
    negative_of_pair = torch.arange(len(positive_of_pair), device=logit_B.device) + shift_P[positive_of_pair]
    excess = logit_B[negative[negative_of_pair]] - logit_B[positive[positive_of_pair]]
    mean_of_pair = F.softplus(excess) / count_P[positive_of_pair]
    loss_B = logit_B.new_zeros(len(logit_B)).index_add(0, positive[positive_of_pair], mean_of_pair)
    is_term_B = torch.zeros_like(label_B, dtype=torch.bool)
    is_term_B[positive] = count_P > 0
    return loss_B + 0.0 * logit_B, is_term_B


def listwise_losses(logit_B: torch.Tensor, label_B: torch.Tensor, group_of_row_B: torch.Tensor) -> Terms:
    """group_of_row_B: [B] int64 from 0. The sum over a group's negatives is taken once."""
    is_negative_B = label_B == 0
    num_groups = int(group_of_row_B.max()) + 1 if len(group_of_row_B) else 0
    lowest = torch.finfo(logit_B.dtype).min
    negative_B = logit_B.masked_fill(~is_negative_B, lowest)
    largest_G = logit_B.new_full((num_groups,), lowest).scatter_reduce(
        0, group_of_row_B, negative_B.detach(), "amax", include_self=True
    )
    terms_B = torch.where(is_negative_B, torch.exp(negative_B - largest_G[group_of_row_B]), 0.0)
    sum_G = logit_B.new_zeros(num_groups).index_add(0, group_of_row_B, terms_B)
    has_negative_G = sum_G > 0
    log_sum_G = torch.where(has_negative_G, sum_G, 1.0).log() + largest_G
    is_term_B = (label_B > 0) & has_negative_G[group_of_row_B]
    excess_B = torch.where(is_term_B, log_sum_G[group_of_row_B] - logit_B, 0.0)
    loss_B = F.softplus(excess_B)
    return torch.where(is_term_B, loss_B, logit_B * 0.0), is_term_B


def naive_losses(
    kind: RankingLoss,
    logits: torch.Tensor,
    labels: list[float],
    groups: list[int],
    *,
    gamma: float = 0.0,
    positive_weight: float = 1.0,
) -> dict[int, torch.Tensor]:
    """The definition: the loss of each row that is a term, by its place."""
    found = {}
    for i, label in enumerate(labels):
        if kind == "cross_entropy":
            if not math.isnan(label):
                p = torch.sigmoid(logits[i])
                of_what_happened = p * label + (1 - p) * (1 - label)
                entropy = -label * torch.log(p) - (1 - label) * torch.log(1 - p)
                weight = positive_weight * label + (1 - label)
                found[i] = weight * (1 - of_what_happened) ** gamma * entropy
            continue
        negatives = [j for j in range(len(labels)) if groups[j] == groups[i] and labels[j] == 0]
        if not label > 0 or not negatives:
            continue
        if kind == "pairwise":
            found[i] = torch.stack([torch.log(1 + torch.exp(logits[j] - logits[i])) for j in negatives]).mean()
        else:
            found[i] = torch.stack([logits[i].exp(), *(logits[j].exp() for j in negatives)]).sum().log() - logits[i]
    return found
