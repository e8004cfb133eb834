"""The early ranker: equal to its twin, and of kept item vectors only its head is left."""

from __future__ import annotations

import pytest
import torch

from reqdedup.models import EarlyRanker, EarlyRankerConfig, naive
from tests.models.batches import INPUTS, SHAPES, random_batch
from tests.models.twins import TOLERANCE, assert_same, twins


def config(**changes) -> EarlyRankerConfig:
    return EarlyRankerConfig(labels=("click", "save"), output_width=5, head_widths=(7,), **{**INPUTS, **changes})


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", ["ragged, empty histories and requests", "no history at all", "one request"])
@pytest.mark.parametrize("changes", [{}, {"tower": "parallel", "layer": "hstu"}], ids=str)
def test_it_equals_the_towers_and_head_computed_once_per_row(shape, changes):
    of = config(**changes)
    ours, duplicated = twins(EarlyRanker(of), naive.EarlyRanker(of))
    batch = random_batch(*SHAPES[shape])
    logits, expected = ours(batch), duplicated(batch)
    torch.testing.assert_close(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    weight = torch.randn(batch.num_rows, 2)
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same(ours, duplicated)


def test_kept_item_vectors_give_the_same_logits():
    model, batch = EarlyRanker(config()).eval(), random_batch([5, 0, 17], [3, 4, 2])
    kept_BD = model.encode_items(batch.item_id_B, batch.row)
    assert torch.equal(model.score(model.towers.user_tower(batch), kept_BD, batch), model.predict(batch))
    with pytest.raises(ValueError, match="evaluation mode required"):
        model.train().predict(batch)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"labels": ()}, r"found \(\) and \(7,\)"),
        ({"head_widths": (0,)}, r"found \('click', 'save'\) and \(0,\)"),
        (
            {"context_categories": (("subject", "", "item_category"),), "context_from": "positive"},
            "context_from='logged' required",
        ),
        ({"heads": ("click", "save")}, "no heads required, found click, save"),
    ],
)
def test_what_fits_not_together_is_refused(changes, found):
    values = {"labels": ("click", "save"), "output_width": 5, "head_widths": (7,), **INPUTS, **changes}
    with pytest.raises(ValueError, match=found):
        EarlyRankerConfig(**values)
