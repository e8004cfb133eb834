"""Cross layers and real-time context in the two-tower: once per request equals once per row, and the halves are the whole."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from reqdedup.models import TwoTower, naive
from reqdedup.models.cross import CrossLayers
from reqdedup.models.two_tower import UserHead, user_head
from reqdedup.models.two_tower.context import with_shuffled_context, without_context
from tests.models.batches import SHAPES, random_batch, two_tower_config
from tests.models.twins import TOLERANCE, assert_same, twins

CONTEXT = {
    "context_categories": (("subject", "confidence", "item_category"), ("second", "", "")),
    "context_vectors": (("subject_vector", 4),),
    "context_dropout": 0.0,
}
VARIANTS = {
    "stacked": {"tower": "stacked", "cross_rank": 3},
    "parallel": {"tower": "parallel", "cross_layers": 1},
    "context": CONTEXT,
    "context weighs the state": {**CONTEXT, "fusion": "attention", "pooling": "both"},
    "context of the positive": {**CONTEXT, "context_from": "positive"},
    "a head each": {"heads": ("buy", "click", "save"), "pooling": "both"},
    "a head each, parallel, with context": {**CONTEXT, "tower": "parallel", "heads": ("buy", "click")},
    "all of it": {**CONTEXT, "tower": "parallel", "context_from": "positive", "fusion": "attention", "pooling": "both"},
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch_of(lengths, rows):
    """With contexts: some null, of no weight, of a weight that is missing."""
    batch, generator = random_batch(lengths, rows), torch.Generator().manual_seed(4)
    num = batch.num_requests
    confidence = torch.rand(num, generator=generator)
    confidence[1::3], confidence[2::3] = 0.0, torch.nan
    context = {
        "subject": torch.randint(-1, 6, (num,), generator=generator).int(),
        "second": torch.randint(-1, 3, (num,), generator=generator),
        "confidence": confidence.float(),
        "subject_vector": torch.randn(num, 4, generator=generator),
    }
    return replace(batch, request={**batch.request, **context})


def model(**changes) -> TwoTower:
    torch.manual_seed(0)
    tower = TwoTower(two_tower_config(**changes)).eval()
    with torch.no_grad():
        for norm in tower.user_mlp.norms:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return tower


@pytest.mark.parametrize("shape", ["ragged, empty histories and requests", "one row a request"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_variant_equals_the_tower_computed_once_per_row(variant, shape, training):
    config = two_tower_config(**VARIANTS[variant])
    ours, duplicated = twins(TwoTower(config).train(training), naive.TwoTower(config).train(training))
    batch = batch_of(*SHAPES[shape])
    (user, item_BD), (user_BD, expected_item_BD) = ours(batch), duplicated(batch)
    if not (training and config.has_row_heads):
        user = batch.expand(user)
    torch.testing.assert_close(user, user_BD, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(item_BD, expected_item_BD, rtol=TOLERANCE, atol=TOLERANCE)
    if training and config.heads:
        assert user.shape == (batch.num_rows, len(config.heads), 5)
        item_BD, expected_item_BD = item_BD[:, None], expected_item_BD[:, None]
    weight = torch.randn(user.shape)
    (user * item_BD * weight).sum().backward()
    (user_BD * expected_item_BD * weight).sum().backward()
    if config.heads and not training:  # then the first head alone is asked
        ours.user_further, duplicated.user_further = nn.ModuleList(), nn.ModuleList()
    assert_same(ours, duplicated)


def test_of_several_heads_the_first_answers_as_a_model_without_the_others():
    tower, batch = model(heads=("buy", "click")), batch_of([7, 0, 12, 3], [2, 0, 1, 4])
    plain = TwoTower(replace(tower.config, heads=())).eval()
    further = {name for name in tower.state_dict() if name.startswith("user_further.0.")}
    plain.load_state_dict({name: x for name, x in tower.state_dict().items() if name not in further})
    assert len(further) == len([name for name in plain.state_dict() if name.startswith("user_")])
    for ours, theirs in zip(tower(batch), plain(batch), strict=True):
        assert torch.equal(ours, theirs)
    both = tower.train()(batch)[0]
    assert both.shape == (4, 2, 5)
    assert not torch.equal(both[:, 0], both[:, 1])
    assert isinstance(user_head(tower.eval().float()), UserHead)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_and_head_are_the_whole_tower_bit_for_bit(variant):
    tower, batch = model(**VARIANTS[variant]), batch_of([7, 0, 12, 3], [1] * 4)
    bounds = itertools.pairwise(batch.history_offsets_R1.tolist())
    for r, (begin, end) in enumerate(bounds):
        state_D = tower.user_state({name: x_T[begin:end] for name, x_T in batch.history.items()})
        request = {name: x_R[r : r + 1] for name, x_R in batch.request.items()}
        found = tower.user_head(state_D[None], request)
        history = {name: x_T[begin:end] for name, x_T in batch.history.items()}
        one = replace(random_batch([end - begin], [1]), history=history, request=request)
        assert torch.equal(found, tower.user_tower(one))
        served = user_head(tower.float())(state_D.float().numpy(), request)
        np.testing.assert_allclose(served, found[0].float().numpy(), rtol=1e-4, atol=1e-5)
        tower.double()


def test_cross_layers_are_the_formula():
    cross = CrossLayers(3, num_layers=2, rank=2)
    x = torch.randn(4, 3)
    for n in range(4):
        at = x[n]
        for narrow, wide in zip(cross.narrow, cross.wide, strict=True):
            at = x[n] * (wide.weight @ (narrow.weight @ at) + wide.bias) + at
        torch.testing.assert_close(cross(x)[n], at, rtol=1e-12, atol=1e-12)


def test_a_context_is_the_mean_of_its_categories_by_their_weight_and_nothing_without_any():
    layer = model(context_categories=(("subject", "confidence", ""), ("second", "weight", ""))).context
    request = {
        "subject": torch.tensor([3, 3, -1, 3]),
        "second": torch.tensor([4, -1, -1, 4]),
        "confidence": torch.tensor([0.6, 0.1, 0.9, -2.0]),
        "weight": torch.tensor([0.2, 0.9, 0.9, torch.nan]),
    }
    of = layer.of_category(torch.tensor([3, 4]))
    found = layer.of_requests(request, torch.float64)
    wanted = [(0.6 * of[0] + 0.2 * of[1]) / 0.8, of[0], 0 * of[0], 0 * of[0]]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-6, atol=1e-7)


def test_the_whole_context_of_a_request_is_dropped_in_training_alone():
    layer = model(**{**CONTEXT, "context_dropout": 0.5}).context
    request = batch_of([1] * 200, [1] * 200).request
    whole = layer.eval().of_requests(request, torch.float64)
    dropped = layer.train().of_requests(request, torch.float64)
    is_kept = (dropped == whole).all(1)
    assert (dropped[~is_kept] == 0).all()
    assert 60 < int((~is_kept).sum()) < 140


def test_context_is_taken_away_or_that_of_another_request():
    tower, batch = model(**CONTEXT), batch_of([3] * 6, [1] * 6)
    config = tower.config
    nothing = tower.context.of_requests(without_context(batch, config).request, torch.float64)
    assert not nothing.any()
    shuffled = with_shuffled_context(batch, config)
    assert sorted(shuffled.request["subject"].tolist()) == sorted(batch.request["subject"].tolist())
    assert not torch.equal(shuffled.request["subject_vector"], batch.request["subject_vector"])
    assert torch.equal(shuffled.request["device"], batch.request["device"])


@pytest.mark.parametrize("users", [[0, 0, 0, 1, 1, 2], [0, 1], [5, 5, 5, 2, 2, 2, 9, 9], [3], []], ids=str)
def test_another_context_is_that_of_another_user(users):
    batch = replace(batch_of([1] * len(users), [1] * len(users)), user_id_R=torch.tensor(users, dtype=torch.int64))
    batch.request["subject"] = batch.user_id_R.int()
    for seed in range(5):
        found = with_shuffled_context(batch, model(**CONTEXT).config, seed=seed).request["subject"].tolist()
        assert sorted(found) == sorted(users)
        assert len(set(users)) < 2 or not any(map(int.__eq__, found, users))


def test_a_plain_tower_keeps_its_folded_head_and_its_weights_names():
    assert isinstance(user_head(model().float()), UserHead)
    names = set(model().state_dict())
    assert not any(part in name for name in names for part in ("cross", "context", "fusion"))
    assert {"tower", "context_categories", "fusion"}.isdisjoint(two_tower_config().to_dict())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"tower": "wide"}, r"tower one of \('mlp', 'stacked', 'parallel'\) required, found 'wide'"),
        ({"cross_rank": 0}, "cross_rank of at least 1 required, found 2 and 0"),
        ({"context_dropout": 1.0}, r"context_dropout in \[0, 1\) required, found 1.0"),
        ({"context_categories": (("device", "", ""),)}, "no other inputs required, found device in both"),
        ({"context_categories": (("subject", "", "brand"),)}, "found brand; they have item_category"),
        ({"context_from": "positive"}, "context_categories with an item column, found none"),
        ({**CONTEXT, "fusion": "attention"}, "a context and pooling='both' required, found pooling='mean'"),
        ({"heads": ("buy", "click", "buy")}, "heads: each label once required, found buy, click, buy"),
        ({**CONTEXT, "context_from": "positive", "heads": ("buy",)}, "context_from='logged' required with heads"),
        ({"fusion": "attention", "pooling": "both"}, "found pooling='both' and 0 columns"),
    ],
)
def test_what_fits_not_together_is_refused(changes, found):
    with pytest.raises(ValueError, match=found):
        two_tower_config(**changes)
