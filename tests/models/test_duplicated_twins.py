"""The deduplicated models equal their duplicated twins: outputs, every gradient, running statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reqdedup import models
from reqdedup.models import DCAT, TwoTower, naive
from tests.models.batches import SHAPES, dcat_config, random_batch, two_tower_config

TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def twins(ours: nn.Module, duplicated: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both with the same parameters, all of them far from their initial values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    duplicated.load_state_dict(ours.state_dict())
    return ours, duplicated


def assert_same(ours: nn.Module, duplicated: nn.Module) -> None:
    for (name, a), (_, b) in zip(ours.named_parameters(), duplicated.named_parameters(), strict=True):
        assert a.grad is not None, f"{name} has no gradient"
        torch.testing.assert_close(a.grad, b.grad, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    for (name, a), (_, b) in zip(ours.named_buffers(), duplicated.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


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


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_two_tower_equals_the_tower_computed_once_per_row(shape, positions, training):
    config = two_tower_config(positions=positions)
    ours, duplicated = twins(TwoTower(config).train(training), naive.TwoTower(config).train(training))
    batch = random_batch(*SHAPES[shape])
    (user_RD, item_BD), (user_BD, expected_item_BD) = ours(batch), duplicated(batch)
    torch.testing.assert_close(batch.expand(user_RD), user_BD, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(item_BD, expected_item_BD, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn(batch.num_rows, 5)
    (batch.expand(user_RD) * item_BD * weight).sum().backward()
    (user_BD * expected_item_BD * weight).sum().backward()
    assert_same(ours, duplicated)
