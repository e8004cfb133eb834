"""Ranking: cross-entropy of each row and label, or positive rows beside the negatives of their request or user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig
from reqdedup.training.config import TrainingConfig
from reqdedup.training.judgement.outcomes import Scored, mature_labels, rows_of
from reqdedup.training.ranking_loss import cross_entropy_losses, listwise_losses, pairwise_losses
from reqdedup.training.split import Split
from reqdedup.training.survey import Survey
from reqdedup.training.tasks.task import LoaderOf
from reqdedup.training.teacher import Teacher


class Ranking:
    """A model with a logit for each of `config.labels`; a missing label (NaN) is no term.

    teacher: what the labels are mixed with; None: nothing.
    newest_us: time of the newest request of the log, from which label_maturity_s counts back.
    labels_of_log: all of the log in its order, in which its histories number them; read if judgements are permuted.
    """

    def __init__(self, config: TrainingConfig, device: torch.device | str = "cpu") -> None:
        model = cast(DCATConfig, config.model)  # or any other with labels
        self.config, self.labels = config, model.labels
        self.newest_us, self.labels_of_log = 0, model.labels
        self.teacher = Teacher(config.teacher, model, device) if config.teacher else None
        taught = self.teacher.columns if self.teacher is not None else ()
        self.columns = (*dict.fromkeys((*model.columns, *taught)), *model.labels)
        self.positive_label = self.judged_label = None
        self.slice_by = config.slice_by
        self.num_requests: Mapping[int, int] = {}
        self.learned_until_us = 0

    @classmethod
    def prepare(cls, config: TrainingConfig, loader_of: LoaderOf, device: torch.device, train: Split) -> Self:
        """Raises ValueError for a log that nothing can be learned from; see `Survey`."""
        task = cls(config, device)
        survey = Survey.of(
            config.model,
            train,
            labels=task.labels,
            maturity_s=config.label_maturity_s,
            chunk_rows=config.chunk_rows,
        )
        loader = loader_of(survey.columns, on_block=survey.count)
        if config.permute_judgements:
            task.labels_of_log = tuple(label.name for label in loader.source.schema.labels)
            task.columns = tuple(dict.fromkeys((*task.columns, *task.labels_of_log)))
        for _ in survey.passing(loader):
            pass
        survey = survey.over_ranks()
        survey.check_rows()
        survey.check_inputs()
        survey.check_labels()
        task.num_requests, task.newest_us = survey.num_requests, survey.newest_us
        mature_us = task.newest_us - round(1_000_000 * max(config.label_maturity_s.values(), default=0.0))
        task.learned_until_us = min(survey.newest_counted_us, mature_us)
        return task

    def inputs(self, batch: RequestBatch) -> tuple[()]:
        return ()

    def loss(self, outputs: torch.Tensor, batch: RequestBatch, *inputs: Any) -> tuple[torch.Tensor, int]:
        config, label_BL = self.config, self.labels_of(batch)
        group_of_row_B = batch.request_of_row_B
        if config.contrast_within == "user":
            group_of_row_B = batch.user_id_R.unique(return_inverse=True)[1][group_of_row_B]
        if self.teacher is not None:
            label_BL = self.teacher.mixed(label_BL, batch, weight=config.teacher_weight)
        loss_sum, num_terms = outputs.sum() * 0.0, 0
        for logit_B, label_B in zip(outputs.unbind(1), label_BL.unbind(1), strict=True):
            if config.ranking_loss == "cross_entropy":
                options = {"gamma": config.focal_gamma, "positive_weight": config.positive_weight}
                loss_B, is_term_B = cross_entropy_losses(logit_B, label_B, **options)
            elif config.ranking_loss == "pairwise":
                loss_B, is_term_B = pairwise_losses(logit_B, label_B, group_of_row_B)
            else:
                loss_B, is_term_B = listwise_losses(logit_B, label_B, group_of_row_B)
            loss_sum, num_terms = loss_sum + loss_B.sum(), num_terms + int(is_term_B.sum())
        return loss_sum, num_terms

    def evaluate(self, model: nn.Module, batches: Sequence[RequestBatch]) -> Scored:
        return Scored(
            labels=self.labels,
            logit_BL=torch.cat([model(batch).double().cpu() for batch in batches]).numpy(),
            label_BL=torch.cat([self.labels_of(batch).double().cpu() for batch in batches]).numpy(),
            **rows_of(batches, self.slice_by),
        )

    def rivals(self) -> Mapping[str, Callable[[RequestBatch], RequestBatch]]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def labels_of(self, batch: RequestBatch) -> torch.Tensor:
        """[B, labels]; see `mature_labels`."""
        maturity_s = self.config.label_maturity_s
        return mature_labels(batch, self.labels, maturity_s=maturity_s, newest_us=self.newest_us)
