"""Losses of ranking equal plain loops, in values and gradients; what is no term teaches nothing."""

from __future__ import annotations

import math

import pytest
import torch

from reqdedup.training import TrainingConfig
from reqdedup.training.ranking_loss import cross_entropy_losses, listwise_losses, naive_losses, pairwise_losses
from reqdedup.training.tasks import Ranking
from tests.models.batches import dcat_config, random_batch

NAN = math.nan
CASES = {
    "mixed": ([0, 0, 0, 0, 1, 1, 2, 2, 2], [1, 0, 0, NAN, 1, 1, 0, 0, 1]),
    "groups in pieces": ([3, 0, 3, 1, 0, 3], [1, 0, 0, 1, 1, 0]),
    "one row": ([0], [1]),
    "nothing known": ([0, 0], [NAN, NAN]),
    "no rows": ([], []),
}


LOSSES = [
    *(("cross_entropy", options) for options in ({}, {"gamma": 2.0}, {"gamma": 1.5, "positive_weight": 3.0})),
    ("pairwise", {}),
    ("listwise", {}),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "options"), LOSSES, ids=str)
def test_losses_equal_a_loop(kind, options, case):
    groups, labels = CASES[case]
    torch.manual_seed(1)
    logits = (3 * torch.randn(len(labels), dtype=torch.float64)).requires_grad_()
    label, group = torch.tensor(labels, dtype=torch.float64), torch.tensor(groups, dtype=torch.int64)
    if kind == "cross_entropy":
        loss, is_term = cross_entropy_losses(logits, label, **options)
    else:
        loss, is_term = (pairwise_losses if kind == "pairwise" else listwise_losses)(logits, label, group)
    wanted = naive_losses(kind, logits, labels, groups, **options)
    assert [i for i in range(len(labels)) if is_term[i]] == sorted(wanted)
    assert all(float(loss[i].detach()) == 0 for i in range(len(labels)) if i not in wanted)
    for i, value in wanted.items():
        torch.testing.assert_close(loss[i], value, rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad(loss.sum(), logits)
    total = sum(wanted.values(), start=0.0 * logits.sum())
    torch.testing.assert_close(found, torch.autograd.grad(total, logits)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("losses", [pairwise_losses, listwise_losses])
def test_huge_logits_stay_finite(losses):
    logits = torch.tensor([900.0, -900.0, 900.0, -900.0], requires_grad=True)
    loss, _ = losses(logits, torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1]))
    assert loss.tolist() == [0.0, 1800.0, 0.0, 0.0]
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


def _task(**options) -> Ranking:
    values = {"num_steps": 1, "requests_per_step": 4, "learning_rate": 0.1, "world_size": 1, **options}
    return Ranking(TrainingConfig(model=dcat_config(), **values))


@pytest.mark.parametrize("within", ["request", "user"])
def test_the_task_sums_over_labels_and_groups_by_request_or_user(within):
    batch = random_batch([1, 2, 0], [4, 3, 5])
    batch.user_id_R[:] = torch.tensor([7, 8, 7])
    batch.row["save"] = (torch.arange(12) % 3 == 0).float()
    logits = torch.randn(12, 2, dtype=torch.float64)
    loss, terms = _task(ranking_loss="pairwise", contrast_within=within).loss(logits, batch)
    groups = batch.user_id_R[batch.request_of_row_B] if within == "user" else batch.request_of_row_B
    wanted = [
        value
        for column, label in enumerate(("click", "save"))
        for value in naive_losses("pairwise", logits[:, column], batch.row[label].tolist(), groups.tolist()).values()
    ]
    assert terms == len(wanted)
    torch.testing.assert_close(loss, sum(wanted), rtol=1e-12, atol=1e-12)


def test_a_label_younger_than_its_window_is_missing_and_not_negative():
    batch = random_batch([1, 2, 0], [1, 2, 1])
    batch.row["save"] = torch.zeros(4)
    batch.request["request_ts"] = torch.tensor([0, 60, 100]) * 1_000_000
    task = _task(label_maturity_s={"save": 40})
    task.newest_us = 100_000_000
    assert task.labels_of(batch)[:, 1].isnan().tolist() == [False, False, False, True]
    assert not task.labels_of(batch)[:, 0].isnan().any()


def test_what_means_nothing_is_refused():
    for options, words in (
        ({"focal_gamma": 0.5}, "focal_gamma of 0, or of at least 1, required, found 0.5"),
        ({"positive_weight": 0.0}, "positive_weight above 0 required, found 0.0"),
        ({"label_maturity_s": {"sold": 3}}, "labels of the model required, found sold; it has click, save"),
        ({"ranking_loss": "hinge"}, "ranking_loss one of"),
        ({"ranking_loss": "pairwise", "focal_gamma": 2.0}, "of cross_entropy"),
    ):
        with pytest.raises(ValueError, match=words):
            _task(**options)
