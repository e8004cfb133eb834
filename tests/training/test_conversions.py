"""Weighted positives, the request's own misses and groups of items: the loss is its plain loops, values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reqdedup.models import TwoTowerConfig
from reqdedup.training import TrainingConfig
from reqdedup.training.conversions import ConversionLoss, conversion_loss_naive
from reqdedup.training.rank_run import RankRun, run_rank
from tests.models.batches import dcat_config, random_batch, two_tower_config
from tests.training.logs import random_log, with_signal

BOTH = (("buy", 1.0, "", 0.0), ("click", 0.3, "dwell_s", 30.0))
CASES = {
    "one label": {"positives": (("buy", 2.0, "", 0.0),)},
    "two labels and a duration": {"positives": BOTH},
    "misses": {"positives": BOTH, "hard_negative_weight": 0.5},
    "groups": {"positives": BOTH, "coarse_column": "brand", "coarse_weight": 0.7},
    "all": {"positives": BOTH, "hard_negative_weight": 2.0, "coarse_column": "brand", "coarse_weight": 0.4},
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
    user_RD = torch.randn(len(rows), 4, generator=generator, dtype=torch.float64, requires_grad=True)
    item_BD = torch.randn(sum(rows), 4, generator=generator, dtype=torch.float64, requires_grad=True)
    log_q_B = torch.randn(sum(rows), generator=generator, dtype=torch.float64)
    batch = replace(batch, row={name: x.double() if name != "brand" else x for name, x in batch.row.items()})
    found, num_terms = loss(user_RD, item_BD, batch, log_q_B)
    wanted, wanted_terms = conversion_loss_naive(loss, user_RD, item_BD, batch, log_q_B)
    assert num_terms == wanted_terms
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(x, (user_RD, item_BD)) for x in (found, wanted)]
    for ours, law in zip(*grads, strict=True):
        torch.testing.assert_close(ours, law, rtol=1e-12, atol=1e-12)


def test_a_duration_weighs_from_nothing_to_all():
    batch = random_batch([1], [5])
    dwell = torch.tensor([0.0, 9.0, 99.0, 1e9, torch.nan])
    batch = replace(batch, row={"click": torch.ones(5), "dwell_s": dwell})
    weight_B, _ = ConversionLoss(positives=(("click", 2.0, "dwell_s", 99.0),)).weights(batch)
    torch.testing.assert_close(weight_B, torch.tensor([0.0, 1.0, 2.0, 2.0, 0.0], dtype=torch.float64))


@pytest.mark.slow
def test_a_run_learns_from_several_labels_and_is_judged_by_one(tmp_path):
    log = with_signal(random_log())
    model = TwoTowerConfig.from_schema(
        log.schema, output_width=8, width=8, num_layers=1, item_table_rows=64, hidden_widths=(8,)
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


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"positives": (("click", 0.0, "", 0.0),)}, "a weight above 0, .* required of click, found 0.0 and 0.0"),
        ({"positives": (("click", 1.0, "dwell_s", 0.0),)}, "required of click, found 1.0 and 0.0"),
        ({"positives": (("click", 1.0, "", 0.0), ("click", 2.0, "", 0.0))}, "each label once required, found click"),
        ({"hard_negative_weight": -1.0}, "at least 0 required, found -1.0 and 0.5"),
        ({"hard_negative_weight": 1.0, "negatives": "catalogue"}, "found retrieval with 'catalogue'"),
        ({"coarse_column": "brand", "model": dcat_config()}, "found ranking with 'batch'"),
        ({"coarse_column": "brand", "positive_label": None}, "a positive_label, or positives, required"),
    ],
)
def test_what_means_nothing_is_refused(changes, found):
    values = {"model": two_tower_config(), "num_steps": 1, "requests_per_step": 4, "learning_rate": 0.1, **changes}
    with pytest.raises(ValueError, match=found):
        TrainingConfig(**values)
