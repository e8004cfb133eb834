"""Hashing, embeddings and features of the named columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup.models import TwoTower
from reqdedup.models.inputs import ItemEmbedding, RequestFeatures, hashed_row
from tests.models.batches import random_batch, two_tower_config


def test_the_hash_is_what_its_docstring_says():
    ids = [0, 1, 2, -1, 7, 2**40 + 3, -(2**63), 2**63 - 1]
    rows = hashed_row(torch.tensor(ids), 1000).tolist()
    golden = 0x9E3779B97F4A7C15
    expected = [((i * golden % 2**64) >> 33) * 1000 >> 31 for i in ids]
    assert rows == expected


@pytest.mark.parametrize("num_rows", [1, 7, 1000, 65_536, 10_000_019])
def test_rows_are_in_the_table_and_evenly_used(num_rows):
    ids = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 100_000))
    row = hashed_row(ids, num_rows)
    assert row.min() >= 0
    assert row.max() < num_rows
    if num_rows <= 1000:
        counts = torch.bincount(row, minlength=num_rows).double()
        assert (counts - len(ids) / num_rows).abs().max() < 6 * (len(ids) / num_rows) ** 0.5 + 1


def test_a_small_vocabulary_hardly_collides():
    assert len(hashed_row(torch.arange(100), 256).unique()) == 100


def test_history_and_candidate_share_the_item_table():
    embedding = ItemEmbedding(two_tower_config(history_categories=(), item_categories=()))
    ids = torch.tensor([5, 9])
    assert torch.equal(embedding.events({"item_id": ids}), embedding.candidates(ids, {}))


def test_request_features_are_side_by_side_and_finite():
    config = two_tower_config()
    features = RequestFeatures(config)
    batch = random_batch([1, 2, 3], [1, 1, 1])
    batch.request["age_days"][:] = torch.tensor([torch.nan, -99.0, 0.0])
    x_RF = features(batch.request, torch.float32)
    assert x_RF.shape == (3, features.width) == (3, 3 + 3 + 1)
    torch.testing.assert_close(x_RF[:, -1], torch.tensor([0.0, -np.log(100.0), 0.0], dtype=torch.float32))


def test_a_column_that_the_loader_left_out_is_named():
    batch = random_batch([1], [2])
    with pytest.raises(ValueError, match=r"reads request\['device'\], the batch has \['age_days', 'user_embedding'\]"):
        TwoTower(two_tower_config()).eval()(
            replace(batch, request={name: x for name, x in batch.request.items() if name != "device"})
        )


def test_items_of_an_index_need_no_batch():
    tower, batch = TwoTower(two_tower_config()).eval(), random_batch([3, 0], [2, 3])
    item_BD = tower.item_tower(batch)
    found = tower.encode_items(batch.item_id_B, {"item_category": batch.row["item_category"]})
    assert torch.equal(found, item_BD)
    torch.testing.assert_close(item_BD.norm(dim=1), torch.ones(5))
