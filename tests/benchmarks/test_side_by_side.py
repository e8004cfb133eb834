"""Two-towers side by side score as the mean of their scores."""

import torch

from benchmarks.side_by_side import SideBySide
from reqdedup.models import TwoTower
from tests.models.batches import random_batch, two_tower_config


def test_products_are_the_mean_of_the_towers_and_lengths_stay_1():
    batch, towers = random_batch([3, 0, 5], [2, 1, 3]), []
    for seed in range(3):
        torch.manual_seed(seed)
        towers.append(TwoTower(two_tower_config()).eval())
    together = SideBySide(towers)
    user_RD, item_BD = together(batch)
    each = [tower(batch) for tower in towers]
    wanted = torch.stack([user @ item.mT for user, item in each]).mean(0)
    torch.testing.assert_close(user_RD @ item_BD.mT, wanted)
    for vectors in (user_RD, item_BD):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    columns = {name: batch.row[name] for name in two_tower_config().item_columns}
    torch.testing.assert_close(together.encode_items(batch.item_id_B, columns), item_BD)
