"""Ranking: clicks by binary cross-entropy; AUC and log loss on held-out users."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.study.arms import Arm
from benchmarks.study.log import StudyLog
from benchmarks.study.models import ItemTable, RankingModel, StepBatch, TorchLog
from reqdedup.training.judgement import metrics

EVALUATED_ROWS, CHUNK = 250_000, 8_192


class Ranking:
    """Same-user negatives and their mask mean nothing here: every row has its own label."""

    name = "ranking"
    clicks_only = False

    def model(self, log: StudyLog) -> nn.Module:
        return RankingModel(log)

    def loss(self, model: nn.Module, batch: StepBatch, item_UD: torch.Tensor, arm: Arm, ranks: int) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(model(batch, item_UD), batch.click_B)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, table: ItemTable, data: TorchLog, rows: np.ndarray) -> dict[str, float]:
        model.eval()
        rows = np.sort(np.random.default_rng(17).permutation(rows)[:EVALUATED_ROWS])
        logits, labels = [], []
        for start in range(0, len(rows), CHUNK):
            batch = data.batch(torch.from_numpy(rows[None, start : start + CHUNK]))
            logits.append(model(batch, table.weight_VD[batch.item_U]))
            labels.append(batch.click_B)
        logit_B, label_B = torch.cat(logits), torch.cat(labels)
        return {"auc": metrics.auc(logit_B, label_B), "log_loss": metrics.log_loss(logit_B, label_B)}
