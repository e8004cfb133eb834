"""Ranking: binary cross-entropy over labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig
from reqdedup.training.config import TrainingConfig
from reqdedup.training.judgement.outcomes import Scored, rows_of
from reqdedup.training.plan import Split
from reqdedup.training.survey import Survey
from reqdedup.training.tasks.task import LoaderOf


class Ranking:
    """A model with a logit for each of `config.labels`; a missing label (NaN) is no term."""

    def __init__(self, config: TrainingConfig) -> None:
        model = cast(DCATConfig, config.model)  # or any other with labels
        self.labels = model.labels
        self.columns = (*model.columns, *model.labels)
        self.positive_label = None
        self.slice_by = config.slice_by
        self.num_requests = 0

    @classmethod
    def prepare(cls, config: TrainingConfig, loader_of: LoaderOf, device: torch.device, train: Split) -> Self:
        """Raises ValueError for a log that nothing can be learned from; see `Survey`."""
        task = cls(config)
        survey = Survey.of(config.model, train, labels=task.labels, chunk_rows=config.chunk_rows)
        for _ in survey.passing(loader_of(survey.columns)):
            pass
        survey = survey.over_ranks()
        survey.check_inputs()
        survey.check_labels()
        task.num_requests = survey.num_requests
        return task

    def inputs(self, batch: RequestBatch) -> tuple[()]:
        return ()

    def loss(self, outputs: torch.Tensor, batch: RequestBatch, *inputs: Any) -> tuple[torch.Tensor, int]:
        label_BL = self._labels(batch)
        is_known_BL = ~torch.isnan(label_BL)
        terms_BL = F.binary_cross_entropy_with_logits(
            outputs, label_BL.nan_to_num().to(outputs.dtype), reduction="none"
        )
        return torch.where(is_known_BL, terms_BL, terms_BL * 0.0).sum(), int(is_known_BL.sum())

    def evaluate(self, model: nn.Module, batches: Sequence[RequestBatch]) -> Scored:
        return Scored(
            labels=self.labels,
            logit_BL=torch.cat([model(batch).double().cpu() for batch in batches]).numpy(),
            label_BL=torch.cat([self._labels(batch).double().cpu() for batch in batches]).numpy(),
            **rows_of(batches, self.slice_by),
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _labels(self, batch: RequestBatch) -> torch.Tensor:
        return torch.stack([batch.row[label] for label in self.labels], dim=1)
