"""HSTU in place of softmax attention: equal to its twin computed once per row, and contexts that are kept are exact."""

from __future__ import annotations

import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT, TwoTower, naive
from tests.models.batches import SHAPES, dcat_config, random_batch, two_tower_config
from tests.models.twins import TOLERANCE, assert_same, twins

SIZES = {"width": 32, "num_heads": 4, "hidden_widths": (33, 16), "item_table_rows": 500}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "long"])
def test_dcat_of_hstu_layers_equals_the_pass_over_history_and_candidate(shape, positions):
    config = dcat_config(layer="hstu", positions=positions)
    ours, duplicated = twins(DCAT(config), naive.DCAT(config))
    batch = random_batch(*SHAPES[shape])
    weight = torch.randn(batch.num_rows, 2)
    logits, expected = ours(batch), duplicated(batch)
    torch.testing.assert_close(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same(ours, duplicated)


def test_a_tower_of_hstu_layers_equals_the_tower_computed_once_per_row():
    config = two_tower_config(layer="hstu", pooling="both")
    ours, duplicated = twins(TwoTower(config), naive.TwoTower(config))
    batch = random_batch(*SHAPES["ragged, empty histories and requests"])
    (user_RD, item_BD), (user_BD, expected_item_BD) = ours(batch), duplicated(batch)
    torch.testing.assert_close(batch.expand(user_RD), user_BD, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn(batch.num_rows, 5)
    (batch.expand(user_RD) * item_BD * weight).sum().backward()
    (user_BD * expected_item_BD * weight).sum().backward()
    assert_same(ours, duplicated)


def test_requests_of_a_user_share_a_context_of_hstu_layers():
    torch.manual_seed(0)
    alone = DCAT(dcat_config(layer="hstu")).eval()
    shared = DCAT(dcat_config(layer="hstu", share_context="user")).eval()
    shared.load_state_dict(alone.state_dict())
    whole = random_batch([9], [1])
    items = {name: torch.cat([x[:5], x]) for name, x in whole.history.items()}
    two = random_batch([5, 9], [3, 4], seed=1)
    two = RequestBatch(**{**vars(two), "history": items, "user_id_R": torch.tensor([7, 7])})
    two.request.update(history_end=torch.tensor([5, 9]), timeline_version=torch.tensor([0, 0]))
    assert two.context_groups().is_shared
    torch.testing.assert_close(shared(two), alone(two), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_kept_context_of_hstu_layers_has_the_bits_of_a_fresh_one(positions):
    torch.manual_seed(0)
    dcat = DCAT(dcat_config(layer="hstu", positions=positions, **SIZES)).float().eval()
    lengths, rows = (0, 1, 17, 64, 130, 300), (3, 1, 16, 40, 7, 2)
    batches = [random_batch([n], [m], seed=n) for n, m in zip(lengths, rows, strict=True)]
    contexts = []
    for batch, length in zip(batches, lengths, strict=True):
        kept = None
        for end in sorted({length // 3, length // 2, length}):
            kept = dcat.encode_blocks({name: x_T[:end] for name, x_T in batch.history.items()}, kept)
        contexts.append(kept)
    together = dcat.predict_exact(RequestBatch.concatenate(batches), contexts).split(rows)
    for batch, context, logits in zip(batches, contexts, together, strict=True):
        assert torch.equal(dcat.predict_exact(batch), logits)
        assert torch.equal(dcat.predict_exact(batch, [context]), logits)
        torch.testing.assert_close(logits, dcat.predict(batch), rtol=1e-4, atol=1e-5)


def test_hstu_without_a_causal_order_is_refused():
    with pytest.raises(ValueError, match="layer='hstu' needs causal attention, found bidirectional"):
        dcat_config(layer="hstu", history_attention="bidirectional")
    with pytest.raises(ValueError, match=r"layer one of \('softmax', 'hstu'\) required, found 'lstm'"):
        dcat_config(layer="lstm")
