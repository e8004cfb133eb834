"""Retrieval: masked InfoNCE over in-batch negatives with logQ; held-out positives ranked in a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Self, cast

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models import TwoTower
from reqdedup.training import metrics
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.frequency import ItemFrequency, StreamingFrequency
from reqdedup.training.gather import gather_columns
from reqdedup.training.loss import Columns, row_losses
from reqdedup.training.survey import Survey
from reqdedup.training.tasks.task import LoaderOf

RECALL_AT = (10, 50, 100)


class Retrieval:
    """A model of two towers; evaluated by the rank of held-out positives in a catalogue."""

    def __init__(self, config: TrainingConfig, catalogue: Catalogue, device: torch.device) -> None:
        model = config.model
        self.config = config
        self.columns = (*model.columns, *([config.positive_label] if config.positive_label else []))
        self.positive_label = config.positive_label
        self.item_columns = model.item_categories
        item_id_C, columns = catalogue.sample(config.catalogue_items, config.seed)
        self.catalogue = item_id_C.to(device), {name: column.to(device) for name, column in columns.items()}
        self.frequency: ItemFrequency | StreamingFrequency | None = None
        if config.log_q == "exact":
            self.frequency = ItemFrequency.from_counts(catalogue.item_id_V, catalogue.count_V).to(device)
        elif config.log_q == "streaming":
            self.frequency = StreamingFrequency(4 * len(catalogue.item_id_V) + 1)

    @classmethod
    def prepare(cls, config: TrainingConfig, loader_of: LoaderOf, device: torch.device) -> Self:
        """Raises ValueError for a log that nothing can be learned from; see `Survey`."""
        requests = config.requests_per_step if config.gather_negatives else config.requests_per_rank
        if config.mask_same_user and requests < 2:
            raise ValueError(
                f"training: at least two requests that are contrasted in a step required, found {requests}, whose "
                "negatives mask_same_user takes out; raise requests_per_step"
            )
        users, label, items = config.training_users, config.positive_label, config.model.item_categories
        survey = Survey.of(config.model, users, positive_label=label)
        loader = loader_of((*items, *survey.columns))
        batches = survey.passing(chain([loader.empty_batch()], loader))
        catalogue = Catalogue.read(batches, items, counted=users, label=label)
        survey = survey.over_ranks()
        survey.check_inputs()
        num_items = int((catalogue.count_V > 0).sum())
        survey.check_contrast(num_items, mask_same_user=config.mask_same_user)
        return cls(config, catalogue, device)

    def loss(self, outputs: tuple[torch.Tensor, torch.Tensor], batch: RequestBatch) -> tuple[torch.Tensor, int]:
        user_RD, item_BD = outputs
        columns = Columns(
            item_ND=item_BD,
            item_id_N=batch.item_id_B,
            user_id_N=batch.user_id_R[batch.request_of_row_B],
            log_q_N=self._log_q(batch.item_id_B),
        )
        losses = row_losses(
            user_RD,
            gather_columns(columns) if self.config.gather_negatives else columns,
            request_of_row_B=batch.request_of_row_B,
            user_id_R=batch.user_id_R,
            item_id_B=batch.item_id_B,
            temperature=self.config.temperature,
            mask_same_user=self.config.mask_same_user,
            same_user_share=self.config.same_user_share,
        )
        return losses.loss_B.sum() + 0.0 * (user_RD.sum() + item_BD.sum()), int(losses.is_legal_B.sum())

    def _log_q(self, item_id_B: torch.Tensor) -> torch.Tensor:
        if self.frequency is None:
            return torch.zeros(len(item_id_B), device=item_id_B.device)
        if isinstance(self.frequency, StreamingFrequency):
            on_cpu = item_id_B.cpu()  # its tables stay there
            self.frequency.update(on_cpu)
            return self.frequency.log_q(on_cpu).to(item_id_B.device)
        return self.frequency.log_q(item_id_B)

    def evaluate(self, model: nn.Module, batches: Sequence[RequestBatch]) -> tuple[torch.Tensor, int]:
        item_id_C, columns = self.catalogue
        catalogue_CD = cast(TwoTower, model).encode_items(item_id_C, columns)  # or any other with this method
        ranks = [torch.zeros(0, dtype=torch.float64)]
        for batch in batches:
            user_RD, item_BD = model(batch)
            ranks.append(
                metrics.ranks_in_catalogue(
                    user_RD,
                    item_BD,
                    catalogue_CD,
                    request_of_row_B=batch.request_of_row_B,
                    item_id_B=batch.item_id_B,
                    catalogue_item_id_C=item_id_C,
                )
            )
        return torch.cat([rank_B.cpu() for rank_B in ranks]), len(item_id_C)

    def summary(self, parts: Sequence[tuple[torch.Tensor, int]]) -> dict[str, float]:
        rank_B = torch.cat([ranks for ranks, _ in parts])
        num_items = parts[0][1]
        figures: dict[str, float] = {"eval_rows": len(rank_B), "eval_items": num_items}
        figures["mean_log_rank"] = metrics.mean_log_rank(rank_B)
        figures["mean_log_rank_chance"] = metrics.chance_log_rank(num_items)
        for k, recall in metrics.recall_at_k(rank_B, RECALL_AT).items():
            figures[f"recall_at_{k}"] = recall
            figures[f"recall_at_{k}_chance"] = min(1.0, k / max(num_items, 1))
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {} if self.frequency is None else self.frequency.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.frequency, StreamingFrequency):  # exact counts are counted again from the same snapshot
            self.frequency.load_state_dict(state)
