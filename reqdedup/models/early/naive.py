"""The early ranker computed B times: the law that the deduplicated one must equal; see `reqdedup.models.duplicated`."""

from __future__ import annotations

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.early import model
from reqdedup.models.early.config import EarlyRankerConfig
from reqdedup.models.two_tower import naive


class EarlyRanker(model.EarlyRanker):
    """`reqdedup.models.EarlyRanker` by its definition: the user tower, and all of the head, on each of the B rows."""

    @staticmethod
    def make_towers(config: EarlyRankerConfig) -> naive.TwoTower:
        return naive.TwoTower(config)

    def forward(self, batch: RequestBatch) -> torch.Tensor:
        user_BD, item_BD = self.towers.user_tower(batch), self.towers.item_tower(batch)
        hidden_BH = self.head_user(user_BD) + self.head_item(item_BD) + self.head_product(user_BD * item_BD)
        return self.head(hidden_BH)
