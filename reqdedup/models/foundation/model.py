"""A foundation model of user sequences: what comes next, from the history alone.

    forward(batch, pairs) -> (event vectors [P, O], item vectors [P, O])    pre-training: event against later item
    forward(batch)        -> (user vectors [R, O], item vectors [B, O])     judged as a retrieval model: the last event

Its embedding and transformer have the names, and with an equal configuration the shapes, of those of DCAT and the
two-tower, which begin with them (`fill_from_foundation`): pre-trained once on timelines, used in both.
Source: PinFM (arXiv 2507.12704).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.foundation.config import FoundationConfig
from reqdedup.models.foundation.pairs import Pairs
from reqdedup.models.foundation.timelines import timelines_of
from reqdedup.models.histories import Histories, last_of_history
from reqdedup.models.inputs import ItemEmbedding
from reqdedup.models.transformer import HistoryTransformer


class Foundation(nn.Module):
    """Vectors of events and of items, all of length 1."""

    def __init__(self, config: FoundationConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = ItemEmbedding(config)
        self.transformer = HistoryTransformer(config)
        self.final_norm = nn.LayerNorm(config.width)
        self.event_out, self.item_out = (
            nn.Sequential(
                nn.Linear(config.width, config.ffn_width), nn.GELU(), nn.Linear(config.ffn_width, config.output_width)
            )
            for _ in range(2)
        )

    def forward(self, batch: RequestBatch, pairs: Pairs | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """See the head of this module."""
        histories = timelines_of(batch, self.config)[0] if pairs is not None else Histories.of(batch, self.config)
        x_TD, _ = self.transformer(self.embedding.events(histories.tokens), histories.offsets_G1)
        if pairs is not None:
            return self.of_events(x_TD[pairs.anchor_P]), self.encode_items(pairs.item_id_P, {})
        last_RD = last_of_history(x_TD, histories.offsets_G1, histories.prefixes)
        return self.of_events(last_RD), self.encode_items(batch.item_id_B, batch.row)

    def of_events(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Vectors of events as the transformer gives them: [N, output_width]."""
        return F.normalize(self.event_out(self.final_norm(x_ND)), dim=1)

    def encode_items(self, item_id_N: torch.Tensor, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Vectors of any items: [N, output_width]. columns: nothing is read of them."""
        return F.normalize(self.item_out(self.embedding.items(item_id_N)), dim=1)
