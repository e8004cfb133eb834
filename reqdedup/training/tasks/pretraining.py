"""Pre-training: events of histories say which come after them, against those of other users in the step."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Self, cast

import numpy as np
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import FoundationConfig
from reqdedup.models.foundation.pairs import Pairs, is_asked, pairs_of
from reqdedup.models.foundation.timelines import timelines_of
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.frequency import ItemFrequency
from reqdedup.training.gather import gather_columns
from reqdedup.training.loss import Columns, row_losses
from reqdedup.training.split import Split
from reqdedup.training.tasks.retrieval import Retrieval
from reqdedup.training.tasks.task import LoaderOf

_HISTORIES_TOGETHER = 256


class Pretraining(Retrieval):
    """Learns from every request's history, whatever its labels. Judged as a retrieval model: where the last event ranks
    what was engaged with next."""

    learns_from_labels = False

    def __init__(
        self,
        config: TrainingConfig,
        catalogue: Catalogue,
        device: torch.device,
        num_requests: Mapping[int, int] | None = None,
    ) -> None:
        if config.negatives != "batch":
            raise ValueError(f"training: negatives='batch' required in pre-training, found {config.negatives!r}")
        super().__init__(config, catalogue, device, num_requests)
        self.positive_label = None

    @classmethod
    def prepare(cls, config: TrainingConfig, loader_of: LoaderOf, device: torch.device, train: Split) -> Self:
        """Counts for logQ the events that may be asked for; see `Retrieval.prepare`."""
        task = super().prepare(config, loader_of, device, train)
        if config.log_q == "exact":
            model = cast(FoundationConfig, config.model)
            loader = loader_of(model.columns, users=train, requests=_HISTORIES_TOGETHER)
            events = Catalogue.of_all_ranks(_events(batch, model) for batch in chain([loader.empty_batch()], loader))
            task.frequency = ItemFrequency.from_counts(events.item_id_V, events.count_V).to(device)
        return task

    def inputs(self, batch: RequestBatch) -> tuple[Pairs]:
        """Events and what they are asked, drawn by torch's generator."""
        model = cast(FoundationConfig, self.config.model)
        return (pairs_of(batch, model).drawn(model.pairs_per_step),)

    def loss(
        self, outputs: tuple[torch.Tensor, torch.Tensor], batch: RequestBatch, *inputs: Any
    ) -> tuple[torch.Tensor, int]:
        """InfoNCE of the pairs: of each the negatives are the items of other users' pairs, of all ranks."""
        event_PD, item_PD = outputs
        pairs: Pairs = inputs[0]
        columns = Columns(
            item_ND=item_PD,
            item_id_N=pairs.item_id_P,
            user_id_N=pairs.user_id_P,
            log_q_N=self._log_q(pairs.item_id_P),
        )
        losses = row_losses(
            event_PD,
            gather_columns(columns) if self.config.gather_negatives else columns,
            request_of_row_B=torch.arange(len(event_PD), device=event_PD.device),
            user_id_R=pairs.user_id_P,
            item_id_B=pairs.item_id_P,
            temperature=self.config.temperature,
            mask_same_user=self.config.mask_same_user,
            same_user_share=self.config.same_user_share,
        )
        return losses.loss_B.sum() + 0.0 * (event_PD.sum() + item_PD.sum()), int(losses.is_legal_B.sum())


def _events(batch: RequestBatch, model: FoundationConfig) -> Catalogue:
    """Items of the events that a batch may ask for, with how often it has each."""
    tokens = timelines_of(batch, model)[0].tokens
    item_id_T = tokens["item_id"][is_asked(tokens, model)].numpy()
    return Catalogue.of_rows(item_id_T, np.ones(len(item_id_T)), np.zeros(len(item_id_T), np.int64), {})
