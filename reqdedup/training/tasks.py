"""What differs between retrieval and ranking: columns, loss, and what is measured on held-out users.

Both give the loss as (sum over this rank's terms, number of terms), so that the loop can weigh uneven ranks right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig, TwoTower, TwoTowerConfig
from reqdedup.training import metrics
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.frequency import ItemFrequency, StreamingFrequency
from reqdedup.training.gather import gather_columns
from reqdedup.training.loss import Columns, row_losses

RECALL_AT = (10, 50, 100)


class Task(Protocol):
    """columns: the loader reads these.  positive_label: and only the rows where this is positive (None: all)."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def positive_label(self) -> str | None: ...

    def loss(self, outputs: Any, batch: RequestBatch) -> tuple[torch.Tensor, int]:
        """Sum of the loss terms [nats] of this rank, part of the graph even without terms, and their number."""
        ...

    def evaluate(self, model: nn.Module, batches: Sequence[RequestBatch]) -> Any:
        """This rank's part of the held-out figures; the model is in evaluation mode, no collectives."""
        ...

    def summary(self, parts: Sequence[Any]) -> dict[str, float]:
        """The figures of all ranks' parts, each with what chance would give as `<name>_chance`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the loss has learned or counted, for the checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Ranking:
    """DCAT with binary cross-entropy over its labels; a missing label (NaN) is no term."""

    def __init__(self, config: TrainingConfig, model: DCATConfig) -> None:
        self.labels = model.labels
        self.columns = (*model.columns, *model.labels)
        self.positive_label = None

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


class Retrieval:
    """Two-tower with masked InfoNCE and logQ; evaluated by the rank of held-out positives in a catalogue."""

    def __init__(
        self, config: TrainingConfig, model: TwoTowerConfig, catalogue: Catalogue, device: torch.device
    ) -> None:
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
        assert isinstance(model, TwoTower)
        item_id_C, columns = self.catalogue
        catalogue_CD = model.encode_items(item_id_C, columns)
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


def make_task(config: TrainingConfig, catalogue: Catalogue | None, device: torch.device) -> Task:
    """catalogue: required by retrieval.  device: of the batches."""
    if isinstance(config.model, TwoTowerConfig):
        assert catalogue is not None
        return Retrieval(config, config.model, catalogue, device)
    return Ranking(config, config.model)
