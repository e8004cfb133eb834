from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reqdedup.training.launch import run_ranks
from reqdedup.training.norm import SyncBatchNorm1d, convert_sync_batchnorm
from tests.training import ranks

pytestmark = pytest.mark.slow

TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}


def _case(sizes, *, shape=(), momentum=0.1, affine=True, dtype=torch.float64, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.BatchNorm1d(5, momentum=momentum, affine=affine).to(dtype)
    if affine:
        with torch.no_grad():
            layer.weight.copy_(torch.randn(5, generator=generator, dtype=dtype))
            layer.bias.copy_(torch.randn(5, generator=generator, dtype=dtype))
    batches, output_weights = [], []
    for _ in range(3):
        batch = torch.randn(sum(sizes), 5, *shape, generator=generator, dtype=dtype)
        order = batch.reshape(sum(sizes), -1)[:, 0].argsort()  # sorted: local statistics differ from the global ones
        batches.append(batch[order] * 3 + mean)
        output_weights.append(torch.randn(sum(sizes), 5, *shape, generator=generator, dtype=dtype))
    return {"layer": layer, "convert": True, "sizes": sizes, "batches": batches, "output_weights": output_weights}


def _expected(case):
    layer = copy.deepcopy(case["layer"])
    outputs, gradients = [], []
    for batch, weights in zip(case["batches"], case["output_weights"]):
        x = batch.clone().requires_grad_()
        y = layer(x)
        (y * weights).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    parameters = {name: p.grad for name, p in layer.named_parameters()}
    buffers = dict(layer.named_buffers())
    layer.eval()
    return outputs, gradients, parameters, buffers, layer(case["batches"][0]).detach()


CASES = {
    "even": _case([6, 6, 6]),
    "uneven": _case([13, 3, 1]),
    "first rank empty": _case([0, 9, 7], seed=3),
    "middle rank empty": _case([9, 0, 7], seed=11),
    "all rows on one rank": _case([16, 0, 0], seed=12),
    "one row each": _case([1, 1, 1], seed=4),
    "large mean": _case([11, 5, 2], mean=1e6, seed=5),
    "cumulative average": _case([9, 7, 4], momentum=None, seed=6),
    "no weights": _case([9, 7, 4], affine=False, seed=7),
    "with length": _case([4, 2, 1], shape=(3,), seed=8),
}


@pytest.fixture(scope="module")
def results():
    found = zip(*run_ranks(ranks.normalise, list(CASES.values()), world_size=3))  # one start of the ranks for all cases
    return dict(zip([*CASES, "one row in total"], found))


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_one_process_on_the_whole_batch(results, name):
    case, found = CASES[name], results[name]
    outputs, gradients, parameters, buffers, evaluated = _expected(case)
    scale = {"rtol": 1e-8, "atol": 1e-8} if name == "large mean" else TOLERANCE  # 1e6 eats six digits in both
    for step in range(3):
        torch.testing.assert_close(torch.cat([rank["outputs"][step] for rank in found]), outputs[step], **scale)
        torch.testing.assert_close(torch.cat([rank["gradients"][step] for rank in found]), gradients[step], **scale)
    for parameter, gradient in parameters.items():
        total = sum(rank["parameters"][parameter] for rank in found)
        torch.testing.assert_close(total, gradient, **scale)
    for rank in found:
        for buffer, value in buffers.items():
            torch.testing.assert_close(rank["buffers"][buffer], value, **scale)
        torch.testing.assert_close(rank["eval"], evaluated, **scale)


def test_one_row_over_all_ranks_raises_on_every_rank(results):
    for rank in results["one row in total"]:
        assert "more than 1 value per channel" in rank


def test_without_a_process_group_it_is_batchnorm():
    torch.manual_seed(0)
    x = torch.randn(7, 4, dtype=torch.float64)
    plain = nn.BatchNorm1d(4).double()
    synchronised = convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(synchronised, SyncBatchNorm1d)
    assert torch.equal(synchronised(x), plain(x))
    assert torch.equal(synchronised.running_var, plain.running_var)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        synchronised(x[:1])


def test_conversion_keeps_parameters_buffers_mode_and_sharing():
    shared = nn.BatchNorm1d(4, eps=1e-3, momentum=None)
    model = nn.Sequential(
        nn.Linear(4, 4), shared, nn.Sequential(shared, nn.BatchNorm1d(4, affine=False)), nn.LayerNorm(4)
    )
    model[2][1].eval()
    before = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    converted = convert_sync_batchnorm(model)
    assert converted is model
    assert {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]} == before
    assert isinstance(model[1], SyncBatchNorm1d)
    assert model[2][0] is model[1]
    assert (model[1].eps, model[1].momentum, model[1].training) == (1e-3, None, True)
    assert model[2][1].weight is None
    assert not model[2][1].training
    assert isinstance(model[3], nn.LayerNorm)
    assert convert_sync_batchnorm(model)[1] is model[1]
