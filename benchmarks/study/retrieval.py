"""Retrieval: InfoNCE over in-batch negatives with logQ from exact counts; rank of held-out clicks in a catalogue."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.study.arms import Arm
from benchmarks.study.log import StudyLog
from benchmarks.study.models import ItemTable, RetrievalModel, StepBatch, TorchLog
from reqdedup.training.frequency import ItemFrequency
from reqdedup.training.judgement import metrics
from reqdedup.training.loss import same_user_log_weight

EVALUATED_ROWS, CATALOGUE, RECALL_AT = 10_000, 20_000, (10, 50, 100)


class Retrieval:
    """log_q_V: log-probability of every item as a training row."""

    name = "retrieval"
    clicks_only = True

    def __init__(self, log: StudyLog, temperature: float) -> None:
        rows = log.rows(held_out=False, clicks_only=True)
        counts = np.bincount(log.item_B[rows], minlength=log.num_items)
        self.log_q_V = ItemFrequency.from_counts(np.arange(log.num_items), counts).log_p_V
        self.temperature = temperature

    def model(self, log: StudyLog) -> nn.Module:
        return RetrievalModel(log)

    def loss(self, model: nn.Module, batch: StepBatch, item_UD: torch.Tensor, arm: Arm, ranks: int) -> torch.Tensor:
        user_PD, item_BD = model(batch, item_UD)
        return loss_of_ranks(
            user_PD[batch.pass_of_row_B],
            item_BD,
            user_id_B=batch.user_P[batch.pass_of_row_B],
            item_id_B=batch.item_id_B,
            log_q_B=self.log_q_V[batch.item_id_B],
            ranks=arm.negative_groups(len(batch.item_B), ranks),
            temperature=self.temperature,
            same_user=arm.same_user,
            same_user_share=arm.same_user_share,
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module, table: ItemTable, data: TorchLog, rows: np.ndarray) -> dict[str, float]:
        assert isinstance(model, RetrievalModel)
        model.eval()
        rng = np.random.default_rng(17)
        rows = np.sort(rng.permutation(rows)[:EVALUATED_ROWS])
        item_C = torch.from_numpy(np.sort(rng.permutation(data.num_items)[:CATALOGUE]))
        catalogue_CD = model.encode_items(table.weight_VD[item_C], data.category_V[item_C])
        batch = data.batch(torch.from_numpy(rows[None]))
        user_PD, item_BD = model(batch, table.weight_VD[batch.item_U])
        rank_B = metrics.ranks_in_catalogue(
            user_PD,
            item_BD,
            catalogue_CD,
            request_of_row_B=batch.pass_of_row_B,
            item_id_B=batch.item_id_B,
            catalogue_item_id_C=item_C,
        )
        recall = metrics.recall_at_k(rank_B, RECALL_AT)
        return {"log_rank": metrics.mean_log_rank(rank_B), **{f"recall_at_{k}": recall[k] for k in RECALL_AT}}


def loss_of_ranks(
    user_BD: torch.Tensor,
    item_BD: torch.Tensor,
    *,
    user_id_B: torch.Tensor,
    item_id_B: torch.Tensor,
    log_q_B: torch.Tensor,
    ranks: int,
    temperature: float,
    same_user: str,
    same_user_share: float,
) -> torch.Tensor:
    """Mean InfoNCE loss [nats per legal row] over `ranks` ranks at once, negatives from the row's own rank.

    same_user: as in `Arm`.  It is `reqdedup.training.loss` rank by rank (tests compare them) as one dense [W, b, b]
    product: W small calls would cost more than the study has time for.
    """
    user_WbD, item_WbD = user_BD.view(ranks, -1, user_BD.shape[1]), item_BD.view(ranks, -1, item_BD.shape[1])
    user_Wb, item_Wb = user_id_B.view(ranks, -1), item_id_B.view(ranks, -1)
    logits = torch.bmm(user_WbD, item_WbD.mT) / temperature - log_q_B.view(ranks, 1, -1)
    positive_Wb = logits.diagonal(dim1=1, dim2=2)
    is_out = item_Wb[:, :, None] == item_Wb[:, None, :]
    if same_user != "kept":
        is_same_user = user_Wb[:, :, None] == user_Wb[:, None, :]
        if same_user == "masked":
            is_out = is_out | is_same_user
        else:
            log_weight_Wb = same_user_log_weight(is_same_user.sum(2), user_Wb.shape[1], same_user_share)
            is_out = is_out | (is_same_user & torch.isneginf(log_weight_Wb)[:, :, None])
            weighted = is_same_user & ~is_out
            logits = logits + torch.where(weighted, log_weight_Wb[:, :, None].to(logits.dtype), 0.0)
    negatives_Wb = torch.logsumexp(logits.masked_fill(is_out, -torch.inf), 2)
    is_legal_Wb = torch.isfinite(negatives_Wb.detach())
    loss_Wb = F.softplus(torch.where(is_legal_Wb, negatives_Wb - positive_Wb, -torch.inf))
    return loss_Wb.sum() / is_legal_Wb.sum().clamp(min=1)
