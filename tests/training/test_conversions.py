"""Weighted positives, the request's own misses and groups of items: the loss is its plain loops, values and gradients."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from reqdedup.models import Bundle, TwoTower, TwoTowerConfig, load_model
from reqdedup.models.two_tower import UserHead
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.training import TrainingConfig
from reqdedup.training.conversions import ConversionLoss, conversion_loss_naive
from reqdedup.training.export import export_checkpoint
from reqdedup.training.rank_run import RankRun, run_rank
from reqdedup.values import NULL_INTEGER
from tests.models.batches import dcat_config, random_batch, two_tower_config
from tests.training.logs import random_log, with_signal

BOTH = (("buy", 1.0, "", 0.0), ("click", 0.3, "dwell_s", 30.0))
HEADS = two_tower_config(heads=("buy", "click"))
CASES = {
    "one label": {"positives": (("buy", 2.0, "", 0.0),)},
    "two labels and a duration": {"positives": BOTH},
    "misses": {"positives": BOTH, "hard_negative_weight": 0.5},
    "groups": {"positives": BOTH, "coarse_column": "brand", "coarse_weight": 0.7},
    "all": {"positives": BOTH, "hard_negative_weight": 2.0, "coarse_column": "brand", "coarse_weight": 0.4},
    "a head each": {"positives": BOTH, "heads": ("click", "buy")},
    "a head each, all": {
        "positives": BOTH,
        "heads": ("buy", "click"),
        "hard_negative_weight": 2.0,
        "coarse_column": "brand",
        "coarse_weight": 0.4,
    },
}


def batch_of(rows, *, buys=0.3, seed=0):
    """With missing labels, odd durations, items that a request has twice, groups that are null."""
    batch, generator = random_batch([2] * len(rows), rows), torch.Generator().manual_seed(seed)
    num = sum(rows)

    def draw():
        return torch.rand(num, generator=generator)

    click, buy, dwell = (draw() < 0.5).float(), (draw() < buys).float(), 60 * draw() - 5
    click[::7], buy[3::8], dwell[::5] = torch.nan, torch.nan, torch.nan
    brand = torch.randint(-1, 4, (num,), generator=generator).int()
    items = torch.randint(0, 9, (num,), generator=generator)
    users = torch.arange(len(rows)) // 2
    row = {**batch.row, "click": click, "buy": buy, "dwell_s": dwell, "brand": brand}
    return replace(batch, item_id_B=items, user_id_R=users, row=row)


@pytest.mark.parametrize("rows", [[3, 5, 0, 4, 6], [1, 1, 1], [9], [0, 0]], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_loops_over_rows(case, rows):
    loss, batch = ConversionLoss(**CASES[case], temperature=0.3), batch_of(rows)
    generator = torch.Generator().manual_seed(1)
    shape = (len(rows), len(loss.heads), 4) if loss.heads else (len(rows), 4)
    user = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    item_BD = torch.randn(sum(rows), 4, generator=generator, dtype=torch.float64, requires_grad=True)
    log_q_B = torch.randn(sum(rows), generator=generator, dtype=torch.float64)
    batch = replace(batch, row={name: x.double() if name != "brand" else x for name, x in batch.row.items()})
    found, num_terms = loss(user, item_BD, batch, log_q_B)
    wanted, wanted_terms = conversion_loss_naive(loss, user, item_BD, batch, log_q_B)
    assert num_terms == wanted_terms
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(x, (user, item_BD)) for x in (found, wanted)]
    for ours, law in zip(*grads, strict=True):
        torch.testing.assert_close(ours, law, rtol=1e-12, atol=1e-12)


def test_rows_without_a_group_are_no_group():
    """The part of the loss that groups make is what it is without these rows."""
    batch, generator = batch_of([3, 5, 4, 6]), torch.Generator().manual_seed(1)
    user_RD, item_BD = (torch.randn(size, 4, generator=generator, dtype=torch.float64) for size in (4, 18))

    def of_groups(batch):
        losses = [
            ConversionLoss(**CASES["one label"], coarse_column="brand", coarse_weight=weight)(
                user_RD, item_BD, batch, torch.zeros(18)
            )[0]
            for weight in (1.0, 0.0)
        ]
        return losses[0] - losses[1]

    is_null = batch.row["brand"] == NULL_INTEGER
    assert (is_null & (batch.row["buy"] > 0)).any()
    without = replace(batch, row={**batch.row, "buy": batch.row["buy"].masked_fill(is_null, 0.0)})
    torch.testing.assert_close(of_groups(batch), of_groups(without), rtol=1e-12, atol=1e-12)


def test_a_duration_weighs_from_nothing_to_all():
    batch = random_batch([1], [5])
    dwell = torch.tensor([0.0, 9.0, 99.0, 1e9, torch.nan])
    batch = replace(batch, row={"click": torch.ones(5), "dwell_s": dwell})
    weight_B1, _ = ConversionLoss(positives=(("click", 2.0, "dwell_s", 99.0),)).weights(batch)
    torch.testing.assert_close(weight_B1[:, 0], torch.tensor([0.0, 1.0, 2.0, 2.0, 0.0], dtype=torch.float64))


def test_each_label_teaches_its_own_head_with_its_own_weight():
    loss, batch = ConversionLoss(positives=BOTH, heads=("buy", "click")), random_batch([1, 1], [3, 3])
    labels = {"buy": [1, 0, 0, 0, 0, 0], "click": [1, 1, 0, 1, 1, 1], "dwell_s": [30.0, 5.0, 0, 0, 9.0, 30.0]}
    batch = replace(batch, row={name: torch.tensor(x, dtype=torch.float64) for name, x in labels.items()})
    weight_BL, has_none_B = loss.weights(batch)
    of_s = {t: 0.3 * math.log1p(t) / math.log1p(30.0) for t in (5.0, 9.0)}
    assert weight_BL[:, 0].tolist() == [1, 0, 0, 0, 0, 0]
    assert weight_BL[:, 1].tolist() == pytest.approx([0.3, of_s[5.0], 0, 0, of_s[9.0], 0.3])
    assert has_none_B.tolist() == [False, False, True, False, False, False]
    user_RLD = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    item_BD = torch.randn(6, 4, dtype=torch.float64)
    total, num_terms = loss(user_RLD, item_BD, batch, torch.zeros(6))
    assert num_terms == 1 + 4
    (grad_RLD,) = torch.autograd.grad(total, user_RLD)
    assert grad_RLD[0, 0].any()
    assert not grad_RLD[1, 0].any(), "without a purchase the request says nothing to that head"
    assert grad_RLD[:, 1].any(1).all()


@pytest.mark.slow
def test_a_run_learns_from_several_labels_and_is_judged_by_one(tmp_path):
    log = with_signal(random_log())
    model = TwoTowerConfig.from_schema(
        log.schema, output_width=8, width=8, num_layers=1, item_table_rows=64, hidden_widths=(8,), exclude=("price",)
    )
    config = TrainingConfig(
        model=model, num_steps=10, max_epochs=0, requests_per_step=16, learning_rate=0.02, world_size=1, held_out=0.2,
        positives=(("click", 1.0, "price", 1.0),), hard_negative_weight=0.5, coarse_column="is_new",
    )  # fmt: skip
    assert TrainingConfig.from_dict(config.to_dict()) == config
    run = RankRun(lambda _: None, config, log, tmp_path, None)
    batch = next(iter(run.loader))
    assert {"click", "price", "is_new"} <= set(batch.row)
    assert (batch.row["click"] == 0).any()
    result = run_rank(lambda _: None, config, log, str(tmp_path))
    assert sum(result.losses[-3:]) < sum(result.losses[:3])
    assert len(result.outcomes) > 0
    clicked = sum(int((group.column("click").to_numpy(zero_copy_only=False) > 0).sum()) for group in log.groups)
    assert len(result.outcomes) < clicked


@pytest.mark.slow
def test_a_run_of_a_head_each_is_resumed_exported_and_served_by_its_first_head(tmp_path):
    log = with_signal(random_log())
    model = TwoTowerConfig.from_schema(
        log.schema, output_width=8, width=8, num_layers=1, item_table_rows=64, hidden_widths=(8,), exclude=("is_new", "price"),
        heads=("click", "is_new"),
    )  # fmt: skip
    config = TrainingConfig(
        model=model, num_steps=10, max_epochs=0, requests_per_step=16, learning_rate=0.02, world_size=1, held_out=0.2,
        positives=(("is_new", 0.3, "", 0.0), ("click", 1.0, "price", 1.0)), hard_negative_weight=0.5,
    )  # fmt: skip
    assert TrainingConfig.from_dict(json.loads(config.to_json())) == config
    result = run_rank(lambda _: None, config, log, str(tmp_path))
    assert sum(result.losses[-3:]) < sum(result.losses[:3])
    assert run_rank(lambda _: None, config, log, str(tmp_path), resume=True).losses == result.losses
    trained = cast(TwoTower, load_model(tmp_path / "checkpoint.pt"))
    bundle = Bundle.load(export_checkpoint(tmp_path / "checkpoint.pt", log, tmp_path / "bundle"))
    assert bundle.signature.labels == ("click",)
    batch = next(iter(RankRun(lambda _: None, config, log, tmp_path, None).make_loader(
        requests=1, columns=model.columns, shuffle="none"
    )))  # fmt: skip
    state_D = trained.user_state(batch.history)
    assert torch.equal(trained.user_head(state_D[None], batch.request), trained.user_tower(batch))
    served_D = Retriever.of(bundle).user_vector(state_D.numpy(), batch.request)
    assert np.array_equal(served_D, UserHead(trained)(state_D.numpy(), batch.request))
    np.testing.assert_allclose(served_D, trained.user_tower(batch)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"positives": (("click", 0.0, "", 0.0),)}, "a weight above 0, .* required of click, found 0.0 and 0.0"),
        ({"positives": (("click", 1.0, "dwell_s", 0.0),)}, "required of click, found 1.0 and 0.0"),
        ({"positives": (("click", 1.0, "", 0.0), ("click", 2.0, "", 0.0))}, "each label once required, found click"),
        ({"positives": (("click", 1.0, "", 30.0),)}, "a cap of 30.0 s and none at click"),
        ({"hard_negative_weight": -1.0}, "at least 0 required, found -1.0 and 0.5"),
        ({"hard_negative_weight": 1.0, "negatives": "catalogue"}, "are of negatives='batch', found 'catalogue'"),
        ({"coarse_column": "brand", "model": dcat_config()}, "found a task of ranking"),
        ({"coarse_column": "brand", "positive_label": None}, "a positive_label, or positives, required"),
        ({"model": HEADS}, "required, found heads buy, click with positives none and positive_label click"),
        ({"model": HEADS, "positives": BOTH[:1], "positive_label": "buy"}, "found heads buy, click with positives buy"),
        ({"model": HEADS, "positives": BOTH}, "that of positive_label first, .* and positive_label click"),
    ],
)
def test_what_means_nothing_is_refused(changes, found):
    values = {"model": two_tower_config(), "num_steps": 1, "requests_per_step": 4, "learning_rate": 0.1, **changes}
    with pytest.raises(ValueError, match=found):
        TrainingConfig(**values)
