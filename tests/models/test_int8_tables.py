"""Tables of 8-bit numbers: no number off by more than half a step, and a model on them equal to one on what they say."""

from __future__ import annotations

import copy

import pytest
import torch

from reqdedup.models import DCAT, EarlyRanker, EarlyRankerConfig, Foundation, FoundationConfig, TwoTower
from reqdedup.models.inputs import HashedEmbedding
from reqdedup.models.int8_tables import Int8Embedding, fit_to, with_int8_tables
from tests.models.batches import INPUTS, SHAPES, dcat_config, random_batch, two_tower_config


def test_no_number_is_off_by_more_than_half_a_step():
    torch.manual_seed(0)
    table = HashedEmbedding(50, 7)
    with torch.no_grad():
        table.weight[3] = 0
        table.weight[4] *= 1e6
    ids = torch.arange(200).view(4, 50)
    given, found = table(ids), Int8Embedding.of(table)(ids)
    assert found.shape == given.shape
    step = given.abs().amax(-1, keepdim=True) / 127
    assert ((found - given).abs() <= step / 2 * (1 + 1e-5)).all()
    assert not Int8Embedding.of(table).weight[3].any()


def models():
    early = EarlyRankerConfig(labels=("click",), output_width=5, head_widths=(7,), **INPUTS)
    foundation = FoundationConfig(history_categories=INPUTS["history_categories"], width=8, num_heads=2)
    return [DCAT(dcat_config()), TwoTower(two_tower_config()), EarlyRanker(early), Foundation(foundation)]


def outputs_of(model, batch):
    found = model(batch)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)
def test_a_model_on_them_is_the_model_on_what_they_say_and_survives_a_bundle(model):
    model.eval()
    small = with_int8_tables(copy.deepcopy(model))
    plain, batch = copy.deepcopy(model), random_batch(*SHAPES["ragged, empty histories and requests"])
    weights, said = small.state_dict(), dict(plain.state_dict())
    tables = [name for name, x in weights.items() if x.dtype == torch.int8]
    assert any(name.endswith("embedding.item.weight") for name in tables)
    for name in tables:
        said[name] = weights[name] * weights[name.removesuffix("weight") + "scale"][:, None]
    plain.load_state_dict(said)
    for found, expected in zip(outputs_of(small, batch), outputs_of(plain, batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    again = type(model)(model.config).eval()
    fit_to(again, weights)
    again.load_state_dict(weights)
    for found, expected in zip(outputs_of(again, batch), outputs_of(small, batch), strict=True):
        assert torch.equal(found, expected)
    if hasattr(small, "predict_exact"):
        torch.testing.assert_close(small.predict_exact(batch), small.predict(batch), rtol=1e-4, atol=1e-5)
