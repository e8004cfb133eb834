"""The bag of items knows no order: an early ranker with it says the same of a history in any order."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.model_order import MODELS, SIZES, Bag
from reqdedup.models.registry import build_model
from tests.models.batches import random_batch


def test_a_bag_of_items_says_the_same_of_any_order_and_the_transformer_does_not():
    kind, changes = MODELS["bag of items"]
    torch.manual_seed(0)
    model = build_model(kind(**{**SIZES, **changes, "share_context": "request"})).eval()
    batch = random_batch([5, 0, 9], [2, 1, 3])
    order = torch.cat([begin + torch.randperm(end - begin) for begin, end in batch.history_offsets_R1.unfold(0, 2, 1)])
    other = replace(batch, history={name: x_T[order] for name, x_T in batch.history.items()})
    assert not torch.allclose(model.predict(batch), model.predict(other))
    model.towers.transformer = Bag()
    torch.testing.assert_close(model.predict(batch), model.predict(other))
