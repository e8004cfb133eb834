"""Vectors that something else made of items: looked up by a plain dictionary's rule, equal in the twin and when folded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reqdedup.models import DCAT, EarlyRanker, EarlyRankerConfig, TwoTower, naive
from reqdedup.models.known_vectors import KnownVectors
from tests.models.batches import INPUTS, SHAPES, dcat_config, random_batch, two_tower_config
from tests.models.twins import TOLERANCE, assert_same, twins

WIDTH = 3


def filled(model, batch, seed=0):
    """With vectors of some of the batch's items."""
    rng = np.random.default_rng(seed)
    ids = np.unique(torch.cat([batch.item_id_B, batch.history["item_id"]]).numpy())[::2]
    vectors = rng.standard_normal((len(ids), WIDTH)).astype(np.float32)
    for module in model.modules():
        if isinstance(module, KnownVectors):
            module.take(ids, vectors)
    return model


def test_items_get_their_vectors_and_others_none():
    known = KnownVectors(WIDTH, 2)
    assert not known(torch.tensor([[1, 2]])).any()
    ids, vectors = np.array([3, 7, 2**40]), np.arange(9, dtype=np.float32).reshape(3, 3) + 1
    known.take(ids, vectors)
    plain = dict(zip(ids.tolist(), vectors, strict=True))
    asked = torch.tensor([7, 4, 2**40, -1, 3, 7])
    wanted = torch.stack([torch.tensor(plain.get(i, np.zeros(3, np.float32))) for i in asked.tolist()])
    torch.testing.assert_close(known(asked), wanted @ known.project.weight.T)
    with pytest.raises(ValueError, match="item_vector_width = 4 of the vectors required, found 3"):
        known.take(ids, np.zeros((3, 4), np.float32))


@pytest.mark.parametrize(
    ("config", "ours", "twin"),
    [
        (dcat_config(item_vector_width=WIDTH), DCAT, naive.DCAT),
        (two_tower_config(item_vector_width=WIDTH), TwoTower, naive.TwoTower),
        (
            EarlyRankerConfig(labels=("click",), output_width=5, head_widths=(7,), item_vector_width=WIDTH, **INPUTS),
            EarlyRanker,
            naive.EarlyRanker,
        ),
    ],
    ids=["dcat", "two_tower", "early"],
)
def test_a_model_equals_its_twin_and_its_folded_self_and_weights_bring_them(config, ours, twin):
    torch.set_default_dtype(torch.float64)
    try:
        batch = random_batch(*SHAPES["ragged, empty histories and requests"])
        model = filled(ours(config), batch)
        fresh, duplicated = twins(model, twin(config))
        found, expected = fresh(batch), duplicated(batch)
        pairs = list(zip(found, expected)) if isinstance(found, tuple) else [(found, expected)]
        if isinstance(found, tuple):  # user vectors, once per request and once per row
            pairs[0] = (batch.expand(found[0]), expected[0])
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)
        weights = [torch.randn_like(one) for one, _ in pairs]
        sum((one * w).sum() for (one, _), w in zip(pairs, weights)).backward()
        sum((other * w).sum() for (_, other), w in zip(pairs, weights)).backward()
        assert_same(fresh, duplicated)
        assert fresh.state_dict().keys() == duplicated.state_dict().keys()
        if ours is DCAT:
            fresh.eval()
            torch.testing.assert_close(fresh.predict_exact(batch), fresh.predict(batch), rtol=TOLERANCE, atol=TOLERANCE)
    finally:
        torch.set_default_dtype(torch.float32)
