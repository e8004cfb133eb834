"""The first of two ranking stages: cheap enough for thousands of candidates, taught by the second (DCAT).

    user_R = user tower, once per request        item_B = item tower, of the item alone: kept for all items
    logits = MLP(Wu user_R + Wi item_B + Wp (user_R * item_B))

Of a candidate only the head is left to compute when item vectors are kept: two products of `output_width` and the first
hidden width, where DCAT reads the whole history. Its labels and a teacher's probabilities are mixed in training
(`TrainingConfig.teacher`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.early.config import EarlyRankerConfig
from reqdedup.models.mlp import NormedMLP
from reqdedup.models.two_tower.model import TwoTower


class EarlyRanker(nn.Module):
    """Logits [B, num_labels], one for each of config.labels."""

    def __init__(self, config: EarlyRankerConfig) -> None:
        super().__init__()
        self.config = config
        self.towers = self.make_towers(config)
        width, first = config.output_width, config.head_widths[0]
        self.head_user = nn.Linear(width, first)
        self.head_item = nn.Linear(width, first, bias=False)
        self.head_product = nn.Linear(width, first, bias=False)
        self.head = NormedMLP(config.head_widths, len(config.labels))

    @staticmethod
    def make_towers(config: EarlyRankerConfig) -> TwoTower:
        return TwoTower(config)

    def forward(self, batch: RequestBatch) -> torch.Tensor:
        """Logits of the batch's candidates."""
        return self.score(self.towers.user_tower(batch), self.towers.item_tower(batch), batch)

    def score(self, user_RD: torch.Tensor, item_BD: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
        """Logits [B, num_labels] from vectors of the R users and of the B candidates' items, kept ones for example."""
        share_BH = batch.expand(self.head_user(user_RD))
        product_BD = batch.expand(user_RD) * item_BD
        return self.head(share_BH + self.head_item(item_BD) + self.head_product(product_BD))

    def score_of_one(self, user_D: torch.Tensor, item_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, num_labels] of one user and N kept item vectors: `score` of a batch of one request."""
        share_H, product_ND = self.head_user(user_D), user_D * item_ND
        return self.head(share_H + self.head_item(item_ND) + self.head_product(product_ND))

    def encode_items(self, item_id_N: torch.Tensor, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Item vectors [N, output_width] that `score` reads. columns: config.item_columns of these items."""
        return self.towers.encode_items(item_id_N, columns)

    @torch.no_grad()
    def predict(self, batch: RequestBatch) -> torch.Tensor:
        """Logits [B, num_labels] without gradients. Raises ValueError for a model in training mode."""
        self.towers.check_evaluates()
        return self(batch)
