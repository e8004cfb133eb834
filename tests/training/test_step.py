"""A step in pieces, or with layers computed again, moves weights as the whole step does."""

from __future__ import annotations

import copy

import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.registry import build_model
from reqdedup.training import TrainingConfig
from reqdedup.training.optimizers import Optimizers
from reqdedup.training.step import Stepper
from reqdedup.training.tasks import Ranking
from tests.models.batches import dcat_config, random_batch, two_tower_config


def _batch() -> RequestBatch:
    batch = random_batch([5, 0, 63, 1, 0, 7], [3, 4, 1, 7, 0, 2])
    batch.row["save"] = torch.where(torch.arange(batch.num_rows) % 4 == 0, torch.nan, batch.row["click"])
    return batch._map(lambda x: x.double() if x.is_floating_point() else x)


def _stepper(**options) -> Stepper:
    torch.manual_seed(0)
    config = TrainingConfig(
        model=dcat_config(), num_steps=1, requests_per_step=6, learning_rate=0.1, world_size=1, **options
    )
    model = build_model(config.model).double()
    optimizer = Optimizers(
        model, learning_rate=0.1, table_learning_rate=0.1, table_optimizer="adagrad", weight_decay=0.0, clip_norm=0.0
    )
    cpu = torch.device("cpu")
    return Stepper(
        config=config, task=Ranking(config), trained=model, optimizer=optimizer, device=cpu, rank=0, world_size=1
    )


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: x.grad.to_dense() if x.grad.is_sparse else x.grad
        for name, x in model.named_parameters()
        if x.grad is not None
    }


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_pieces_add_up_to_the_gradient_of_the_mean_over_all_terms(pieces):
    batch, stepper = _batch(), _stepper(pieces=pieces)
    twin = copy.deepcopy(stepper.trained).train()
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for piece in batch.cut(pieces):
        loss_sum, num_terms = stepper.task.loss(twin(piece), piece)
        total, terms = total + loss_sum, terms + num_terms
    (total / terms).backward()
    found = stepper.compute_gradients(batch, step=0)
    assert (found.num_terms, found.meters.rows, found.meters.requests) == (terms, batch.num_rows, 6)
    assert found.loss == pytest.approx(float(total.detach()) / terms, rel=1e-12)
    wanted = _gradients(twin)
    for name, gradient in _gradients(stepper.trained).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_step_whose_pieces_would_be_too_small_for_a_norm_stays_whole():
    batch, in_pieces, whole = _batch(), _stepper(pieces=6), _stepper()
    assert in_pieces.compute_gradients(batch, step=0).loss == whole.compute_gradients(batch, step=0).loss


@pytest.mark.parametrize("layer", ["softmax", "hstu"])
@pytest.mark.parametrize("config", [dcat_config, two_tower_config])
def test_layers_that_are_computed_again_give_the_same_values_and_gradients(config, layer):
    batch = random_batch([5, 0, 63, 1, 0, 7], [3, 4, 1, 7, 0, 2])
    sizes = {"dropout": 0.2, "num_layers": 3, "layer": layer}
    found = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        model = build_model(config(**sizes)).train()
        model.transformer.recomputes = recomputes
        torch.manual_seed(1)
        outputs = model(batch)
        sum(x.square().sum() for x in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
        found.append((outputs, _gradients(model)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_batch_cut_into_pieces_is_the_batch():
    batch = random_batch([5, 0, 63, 1, 0], [3, 4, 0, 7, 1])
    for pieces in (1, 2, 5, 8):
        cut = batch.cut(pieces)
        assert len(cut) == pieces
        whole = RequestBatch.concatenate([piece.validate() for piece in cut])
        assert all(torch.equal(x, batch.tensors()[name]) for name, x in whole.tensors().items())
