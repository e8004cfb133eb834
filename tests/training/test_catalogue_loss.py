"""The softmax over a catalogue, once per request, equals its definition once per row, in values and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from reqdedup.models import TwoTower
from reqdedup.training import TrainingConfig
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.catalogue_loss import catalogue_loss_naive, catalogue_losses
from reqdedup.training.tasks import Retrieval
from tests.models.batches import random_batch, two_tower_config


@pytest.mark.parametrize("items_per_negative", [1.0, 7.5])
@pytest.mark.parametrize("rows", [[3, 1, 0, 5], [1]])
def test_losses_equal_a_loop(rows, items_per_negative):
    torch.manual_seed(0)
    num_rows, items = sum(rows), 9
    user = torch.randn(len(rows), 4, dtype=torch.float64, requires_grad=True)
    item = torch.randn(items, 4, dtype=torch.float64, requires_grad=True)
    request = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    own, is_out = torch.randint(0, items, (num_rows,)), torch.rand(len(rows), items) < 0.4
    is_out[request, own] = True
    options = {"request_of_row_B": request, "own_B": own, "is_out_RC": is_out, "temperature": 0.3}
    options["items_per_negative"] = items_per_negative
    found, wanted = catalogue_losses(user, item, **options), catalogue_loss_naive(user, item, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn(num_rows, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), [user, item]) for x in (found, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_request_that_had_everything_has_nothing_to_lose():
    user, item = torch.randn(1, 3, requires_grad=True), torch.randn(2, 3)
    own, is_out = torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool)
    options = {"request_of_row_B": torch.tensor([0]), "own_B": own, "is_out_RC": is_out, "temperature": 0.1}
    loss = catalogue_losses(user, item, **options)
    assert loss.tolist() == [0.0]
    assert torch.autograd.grad(loss.sum(), user)[0].isfinite().all()


def task_over(items: torch.Tensor, most: int, *, heads: tuple[str, ...] = (), **options: Any) -> Retrieval:
    """items: ids, rising.  most: that are drawn in a step.  options: further ones of the configuration."""
    model = replace(two_tower_config(), heads=heads)
    columns = dict.fromkeys(model.item_categories, (items % 7).int().numpy())
    catalogue = Catalogue.of_rows(items.numpy(), np.ones(len(items)), np.zeros(len(items)), columns)
    config = TrainingConfig(
        model=model, num_steps=1, requests_per_step=3, learning_rate=0.1, world_size=1, negatives="catalogue",
        negatives_per_step=most, temperature=0.5, **options,
    )  # fmt: skip
    return Retrieval(config, catalogue, torch.device("cpu"), num_requests=3)


@pytest.mark.parametrize("most", [100, 5])
def test_the_task_leaves_out_what_the_user_has(most):
    batch = random_batch([3, 0, 6], [2, 3, 1])
    items = torch.cat([batch.item_id_B, batch.history["item_id"]]).unique()
    task = task_over(items, most)
    tower = TwoTower(two_tower_config()).eval()
    (drawn,) = task.inputs(batch)
    assert len(drawn[0]) == len(items) if most == 100 else len(drawn[0]) <= 5 + batch.num_rows
    user, vectors = tower(batch, drawn)
    loss, terms = task.loss((user, vectors), batch, drawn)
    assert terms == batch.num_rows
    place = {item: c for c, item in enumerate(drawn[0].tolist())}
    is_out = torch.zeros(3, len(place), dtype=torch.bool)
    offsets = batch.history_offsets_R1.tolist()
    for r in range(3):
        for item in batch.history["item_id"][offsets[r] : offsets[r + 1]].tolist():
            if item in place:
                is_out[r, place[item]] = True
    own = torch.tensor([place[item] for item in batch.item_id_B.tolist()])
    is_out[batch.request_of_row_B, own] = True
    worth = 1.0
    if drawn[2] is not None:
        is_out[:, ~drawn[2]] = True
        worth = len(items) / drawn[2].sum().item()
    wanted = catalogue_loss_naive(
        user,
        vectors,
        request_of_row_B=batch.request_of_row_B,
        own_B=own,
        is_out_RC=is_out,
        temperature=0.5,
        items_per_negative=worth,
    ).sum()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [(), ("click", "save")], ids=["one head", "a head each"])
def test_rows_of_several_positives_are_weighed(heads):
    batch = random_batch([3, 0, 6, 2], [2, 3, 1, 2])
    batch.row["click"] = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0]).float()
    batch.row["save"] = torch.tensor([1, 0, 0, torch.nan, 1, 1, 0, 0])
    weight_of = {"click": 1.0, "save": 2.5}
    items = torch.cat([batch.item_id_B, batch.history["item_id"]]).unique()
    positives = tuple((label, weight, "", 0.0) for label, weight in weight_of.items())
    task = task_over(items, 100, heads=heads, positives=positives)
    generator = torch.Generator().manual_seed(0)
    shape = (4, 2, 5) if heads else (4, 5)
    user = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    vectors = torch.randn(len(items), 5, dtype=torch.float64, generator=generator, requires_grad=True)
    loss, terms = task.loss((user, vectors), batch, *task.inputs(batch))
    has = {label: (batch.row[label] > 0).tolist() for label in weight_of}
    offsets, requests = batch.history_offsets_R1.tolist(), batch.request_of_row_B.tolist()
    wanted, count = torch.zeros((), dtype=torch.float64), 0
    for n, counted in enumerate([(label,) for label in heads] or [tuple(weight_of)]):
        for b, r in enumerate(requests):
            weight = max(weight_of[label] * has[label][b] for label in counted)
            if not weight:
                continue
            own = {
                i for k, i in enumerate(batch.item_id_B.tolist()) if requests[k] == r and any(has[x][k] for x in has)
            }
            out = own | set(batch.history["item_id"][offsets[r] : offsets[r + 1]].tolist())
            mine = torch.searchsorted(items, batch.item_id_B[b])
            logit = vectors @ (user[r, n] if heads else user[r]) / 0.5
            others = [logit[c] for c, item in enumerate(items.tolist()) if item not in out]
            wanted = wanted + weight * (torch.logsumexp(torch.stack([logit[mine], *others]), 0) - logit[mine])
            count += 1
    assert terms == count
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, [user, vectors]) for x in (loss, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_loss_over_drawn_items_is_that_over_all_in_the_mean():
    """Though the batch's own items, whose logits are high, are in every draw."""
    batch = random_batch([3, 0, 6], [20, 30, 10])
    items = torch.cat([batch.item_id_B, torch.arange(10_000, 10_600)]).unique()
    generator = torch.Generator().manual_seed(0)
    user = torch.nn.functional.normalize(torch.randn(3, 4, generator=generator), dim=1)
    vectors = 0.3 * torch.randn(len(items), 4, generator=generator)
    vectors[torch.searchsorted(items, batch.item_id_B)] += user[batch.request_of_row_B]

    def loss(most: int) -> float:
        task = task_over(items, most)
        (drawn,) = task.inputs(batch)
        found, terms = task.loss((user, vectors[torch.searchsorted(items, drawn[0])]), batch, drawn)
        return float(found) / terms

    torch.manual_seed(1)
    losses = torch.tensor([loss(300) for _ in range(60)])
    error = losses.std() / len(losses) ** 0.5
    assert abs(losses.mean() - loss(len(items))) < 2.5 * error
    assert error < 0.02
