"""Pre-training: events of histories say which come after them, against those of other users in the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import FoundationConfig
from reqdedup.models.foundation.pairs import Pairs, pairs_of
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.gather import gather_columns
from reqdedup.training.loss import Columns, row_losses
from reqdedup.training.tasks.retrieval import Retrieval


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
