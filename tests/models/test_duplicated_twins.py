"""The deduplicated models equal their duplicated twins: outputs, every gradient, running statistics."""

from __future__ import annotations

import pytest
import torch

from reqdedup import models
from reqdedup.models import DCAT, TwoTower, naive
from tests.models.batches import SHAPES, dcat_config, random_batch, two_tower_config
from tests.models.twins import TOLERANCE, assert_same, twins


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dcat_equals_the_causal_pass_over_history_and_candidate(shape, positions, training):
    config = dcat_config(positions=positions)
    ours, duplicated = twins(DCAT(config).train(training), naive.DCAT(config).train(training))
    batch = random_batch(*SHAPES[shape])
    weight = torch.randn(batch.num_rows, 2)
    logits, expected = ours(batch), duplicated(batch)
    torch.testing.assert_close(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same(ours, duplicated)


def test_an_item_bias_is_added_to_each_logit_in_both_and_in_the_folded_model():
    config = dcat_config(item_bias=True)
    assert not DCAT(config).item_bias.weight.any(), "a fresh model says nothing of an item by itself"
    ours, duplicated = twins(DCAT(config), naive.DCAT(config))
    batch = random_batch(*SHAPES["ragged, empty histories and requests"])
    weight = torch.randn(batch.num_rows, 2)
    found, expected = ours(batch), duplicated(batch)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same(ours, duplicated)
    ours.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.predict_exact(batch), ours(batch), rtol=TOLERANCE, atol=TOLERANCE)
        before = ours(batch)
        ours.item_bias.weight += 3
        torch.testing.assert_close(ours(batch), before + 3, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("positions_from", ["start", "end"])
@pytest.mark.parametrize("history_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize(("model", "make_config"), [("DCAT", dcat_config), ("TwoTower", two_tower_config)])
def test_any_attention_and_any_origin_of_positions_equals_its_twin(
    model, make_config, history_attention, positions_from, positions
):
    config = make_config(history_attention=history_attention, positions_from=positions_from, positions=positions)
    ours, duplicated = twins(getattr(models, model)(config), getattr(naive, model)(config))
    batch = random_batch(*SHAPES["ragged, empty histories and requests"])

    def read(outputs):
        if model == "DCAT":
            return outputs
        user, item_BD = outputs
        return (user if len(user) == batch.num_rows else batch.expand(user)) * item_BD

    found, expected = read(ours(batch)), read(duplicated(batch))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same(ours, duplicated)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_two_tower_equals_the_tower_computed_once_per_row(shape, positions, training):
    pooling = {True: "last", False: "both"}[training] if positions == "rope" else "mean"
    config = two_tower_config(positions=positions, pooling=pooling)
    ours, duplicated = twins(TwoTower(config).train(training), naive.TwoTower(config).train(training))
    batch = random_batch(*SHAPES[shape])
    (user_RD, item_BD), (user_BD, expected_item_BD) = ours(batch), duplicated(batch)
    torch.testing.assert_close(batch.expand(user_RD), user_BD, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(item_BD, expected_item_BD, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn(batch.num_rows, 5)
    (batch.expand(user_RD) * item_BD * weight).sum().backward()
    (user_BD * expected_item_BD * weight).sum().backward()
    assert_same(ours, duplicated)
