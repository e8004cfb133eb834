"""Tables move as plain loops over their rows say, on sparse and on dense gradients; all else as AdamW does."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from reqdedup.models.inputs import HashedEmbedding
from reqdedup.training.optimizers import Optimizers, RowwiseAdagrad


@pytest.mark.parametrize("is_sparse", [True, False])
def test_rowwise_adagrad_equals_a_loop_over_the_rows(is_sparse):
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=is_sparse)
    optimizer = RowwiseAdagrad([table.weight], lr=0.3)
    wanted, squares = table.weight.detach().double().tolist(), [0.0] * 6
    for rows in ([0, 2, 2], [2], [], [5, 0, 1]):
        weight = torch.randn(len(rows), 3)
        optimizer.zero_grad()
        (table(torch.tensor(rows, dtype=torch.int64)) * weight).sum().backward()
        optimizer.step()
        for row in set(rows):
            gradient = [sum(float(weight[n, d]) for n in range(len(rows)) if rows[n] == row) for d in range(3)]
            squares[row] += sum(g * g for g in gradient) / 3
            wanted[row] = [w - 0.3 * g / math.sqrt(squares[row]) for w, g in zip(wanted[row], gradient)]
    torch.testing.assert_close(table.weight.detach().double(), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-5)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = HashedEmbedding(50, 4), nn.Linear(4, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids)).sum()


def made(**options) -> tuple[Small, Optimizers]:
    torch.manual_seed(1)
    model = Small()
    rates = {"learning_rate": 0.1, "table_learning_rate": 0.2, "weight_decay": 0.0, "clip_norm": 0.0}
    return model, Optimizers(model, **{**rates, "table_optimizer": "adagrad", **options})


def stepped(model: Small, optimizers: Optimizers, ids: list[int], share: float = 1.0) -> None:
    optimizers.zero_grad()
    model(torch.tensor(ids)).backward()
    optimizers.step(share)


def test_only_rows_that_a_step_read_move():
    model, optimizers = made()
    before = model.table.weight.detach().clone()
    stepped(model, optimizers, [3, 3, 8])
    moved = (model.table.weight != before).any(1)
    assert 1 <= int(moved.sum()) <= 2
    assert model.table.weight.grad.is_sparse
    model, optimizers = made(table_optimizer="adamw", weight_decay=0.1)
    stepped(model, optimizers, [3, 3, 8])
    assert (model.table.weight != before).any(1).all(), "a dense optimiser touches every row"


def test_a_rate_of_zero_moves_nothing_and_a_clipped_gradient_moves_the_head_alike():
    model, optimizers = made()
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    stepped(model, optimizers, [1, 2], share=0.0)
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters())
    model, optimizers = made(clip_norm=1e-3)
    stepped(model, optimizers, [1, 2])
    norm = math.sqrt(sum(float(x.grad.square().sum()) for x in model.head.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_rates_are_of_the_longest_beginning_of_a_name_that_fits():
    model, optimizers = made(rate_factors={"head": 0.5, "head.bias": 0.0, "table": 0.0})
    plain, as_ever = made()
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    for one in ((model, optimizers), (plain, as_ever)):
        stepped(*one, [1, 2])
    moved = {name: x.detach() - before[name] for name, x in model.named_parameters()}
    assert not moved["table.weight"].any()
    assert not moved["head.bias"].any()
    torch.testing.assert_close(moved["head.weight"], 0.5 * (plain.head.weight.detach() - before["head.weight"]))
    with pytest.raises(ValueError, match="found neck; it has head, table"):
        made(rate_factors={"neck": 1.0})


def test_a_state_goes_on_where_it_was():
    model, optimizers = made()
    stepped(model, optimizers, [1, 2, 3])
    again, continued = made()
    again.load_state_dict(model.state_dict())
    continued.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    for one in ((model, optimizers), (again, continued)):
        stepped(*one, [2, 7], share=0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
