"""Two-tower retrieval: the user tower on the R requests, the item tower on the B rows, both L2-normalised.

The user tower runs once per request; its BatchNorm weighs each request by its rows, so that it equals the tower
computed once per row (`reqdedup.models.two_tower.naive.TwoTower`), outputs, gradients and running statistics. With
share_context="user" its transformer runs once per group of requests whose histories are prefixes of one another.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.histories import Histories, mean_over_history
from reqdedup.models.inputs import ItemEmbedding, RequestFeatures
from reqdedup.models.mlp import NormedMLP
from reqdedup.models.transformer import HistoryTransformer
from reqdedup.models.two_tower.config import TwoTowerConfig


class TwoTower(nn.Module):
    """User vectors [R, output_width] and item vectors [B, output_width], both of length 1."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = ItemEmbedding(config)
        self.transformer = HistoryTransformer(config)
        self.final_norm = nn.LayerNorm(config.width)
        self.features = RequestFeatures(config)
        self.user_in = nn.Linear(config.width + self.features.width, config.hidden_widths[0])
        self.user_mlp = NormedMLP(config.hidden_widths, config.output_width)
        self.item_in = nn.Linear(config.width, config.hidden_widths[0])
        self.item_mlp = NormedMLP(config.hidden_widths, config.output_width)

    def user_tower(self, batch: RequestBatch) -> torch.Tensor:
        """User vectors, one per request: [R, output_width]."""
        histories = Histories.of(batch, self.config)
        x_TD, _ = self.transformer(self.embedding.events(histories.tokens), histories.offsets_G1)
        pooled_RD = mean_over_history(self.final_norm(x_TD), histories.offsets_G1, histories.prefixes)
        return self.user_head(pooled_RD, batch)

    def user_head(self, pooled_RD: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
        """[pooled history ; request features] -> MLP -> length 1: [R, output_width]."""
        if self.features.width:
            pooled_RD = torch.cat([pooled_RD, self.features(batch.request, pooled_RD.dtype)], dim=1)
        user_RD = self.user_mlp.on_requests(self.user_in(pooled_RD), batch.row_offsets_R1, batch.num_rows)
        return F.normalize(user_RD, dim=1)

    def item_tower(self, batch: RequestBatch) -> torch.Tensor:
        """Item vectors, one per row: [B, output_width]."""
        return self.encode_items(batch.item_id_B, batch.row)

    def encode_items(self, item_id_N: torch.Tensor, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Item vectors of any items: [N, output_width]. columns: config.item_categories of these items, [N] each."""
        return F.normalize(self.item_mlp(self.item_in(self.embedding.candidates(item_id_N, columns))), dim=1)

    def forward(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(user_RD, item_BD); the score of row b is user_RD[request_of_row_B[b]] @ item_BD[b]."""
        return self.user_tower(batch), self.item_tower(batch)
