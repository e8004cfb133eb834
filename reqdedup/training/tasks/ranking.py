"""Ranking: binary cross-entropy over labels; AUC and log loss on held-out users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig
from reqdedup.training import metrics
from reqdedup.training.config import TrainingConfig
from reqdedup.training.survey import Survey
from reqdedup.training.tasks.task import LoaderOf


class Ranking:
    """A model with a logit for each of `config.labels`; a missing label (NaN) is no term."""

    def __init__(self, config: TrainingConfig) -> None:
        model = cast(DCATConfig, config.model)  # or any other with labels
        self.labels = model.labels
        self.columns = (*model.columns, *model.labels)
        self.positive_label = None

    @classmethod
    def prepare(cls, config: TrainingConfig, loader_of: LoaderOf, device: torch.device) -> Self:
        """Raises ValueError for a log that nothing can be learned from; see `Survey`."""
        task = cls(config)
        survey = Survey.of(config.model, config.training_users, labels=task.labels)
        for _ in survey.passing(loader_of(survey.columns)):
            pass
        survey = survey.over_ranks()
        survey.check_inputs()
        survey.check_labels()
        return task

    def loss(self, outputs: torch.Tensor, batch: RequestBatch) -> tuple[torch.Tensor, int]:
        label_BL = self._labels(batch)
        is_known_BL = ~torch.isnan(label_BL)
        terms_BL = F.binary_cross_entropy_with_logits(
            outputs, label_BL.nan_to_num().to(outputs.dtype), reduction="none"
        )
        return torch.where(is_known_BL, terms_BL, terms_BL * 0.0).sum(), int(is_known_BL.sum())

    def evaluate(self, model: nn.Module, batches: Sequence[RequestBatch]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = [model(batch).float().cpu() for batch in batches]
        labels = [self._labels(batch).cpu() for batch in batches]
        none = torch.zeros(0, len(self.labels))
        return torch.cat([none, *logits]), torch.cat([none, *labels])

    def summary(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        logit_BL, label_BL = (torch.cat(tensors) for tensors in zip(*parts))
        figures: dict[str, float] = {"eval_rows": len(label_BL)}
        for column, label in enumerate(self.labels):
            logit_B, label_B = logit_BL[:, column], label_BL[:, column]
            figures[f"auc_{label}"] = metrics.auc(logit_B, label_B)
            figures[f"auc_{label}_chance"] = 0.5
            figures[f"log_loss_{label}"] = metrics.log_loss(logit_B, label_B)
            figures[f"log_loss_{label}_chance"] = metrics.base_log_loss(label_B)
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _labels(self, batch: RequestBatch) -> torch.Tensor:
        return torch.stack([batch.row[label] for label in self.labels], dim=1)
