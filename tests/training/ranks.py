"""What the tests run on real gloo ranks; importable by the rank processes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reqdedup.batch import RequestBatch
from reqdedup.training import rank_run
from reqdedup.training.config import TrainingConfig
from reqdedup.training.gather import mean_over_ranks
from reqdedup.training.loss import scale_for_mean_over_ranks
from reqdedup.training.norm import convert_sync_batchnorm
from reqdedup.training.ranks import sum_over_ranks
from reqdedup.training.tasks import Task


def normalise(report: Any, cases: list[dict[str, Any]]) -> list[Any]:
    """This rank's outputs, gradients and buffers of each case's layer on its shard of each batch; last, one row's."""
    rank = dist.get_rank()
    results = []
    for case in cases:
        layer = case["layer"]
        if case["convert"]:
            layer = convert_sync_batchnorm(layer)
        outputs, gradients = [], []
        for batch, weights in zip(case["batches"], case["output_weights"]):
            start, end = sum(case["sizes"][:rank]), sum(case["sizes"][: rank + 1])
            x = batch[start:end].clone().requires_grad_()
            y = layer(x)
            (y * weights[start:end]).sum().backward()
            outputs.append(y.detach())
            gradients.append(x.grad)
        parameters = {name: p.grad for name, p in layer.named_parameters()}
        buffers = {name: b.clone() for name, b in layer.named_buffers()}
        layer.eval()
        evaluated = layer(case["batches"][0]).detach()
        results.append(
            {
                "outputs": outputs,
                "gradients": gradients,
                "parameters": parameters,
                "buffers": buffers,
                "eval": evaluated,
            }
        )
    return [*results, one_row_in_total()]


def one_row_in_total() -> str:
    layer = convert_sync_batchnorm(nn.BatchNorm1d(3))
    x = torch.zeros(1 if dist.get_rank() == 0 else 0, 3)
    try:
        layer(x)
    except ValueError as error:
        return str(error)
    return "nothing raised"


def sparse_mean(report: Any, rows: list[list[int]], values: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """The mean over ranks of this rank's rows of a table's gradient."""
    rank = dist.get_rank()
    gradient = torch.sparse_coo_tensor(torch.tensor([rows[rank]]), values[rank], size, check_invariants=False)
    return mean_over_ranks(gradient).to_dense()


def fail_on_rank(report: Any, failing_rank: int, how: str, ballast: bytes = b"") -> int:
    report({"rank": dist.get_rank(), "how": how})
    if dist.get_rank() == failing_rank and how == "hang":
        time.sleep(600)
    dist.all_reduce(torch.zeros(1))
    return dist.get_rank()


def gradients_of_steps(
    report: Any, cases: list[tuple[Task, nn.Module, list[RequestBatch]]]
) -> list[tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """(loss, averaged gradients, buffers) of one step per case, this rank on its own batch of the case's."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results = []
    for task, model, batches in cases:
        trained = DistributedDataParallel(convert_sync_batchnorm(model, dist.new_group()))
        loss_sum, num_terms = task.loss(trained(batches[rank]), batches[rank])
        total, num_global = sum_over_ranks([float(loss_sum), num_terms])
        scale_for_mean_over_ranks(loss_sum, num_global, world_size).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((total / num_global, gradients, dict(model.named_buffers())))
    return results


def train_and_die(report: Any, config: TrainingConfig, source: Any, out_dir: str, death_step: int) -> None:
    """A run whose rank 1 is killed in the middle of a step."""

    class Mortal(rank_run.RankRun):
        def step(self, *args: Any) -> Any:
            if self.result.steps == death_step and self.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(*args)

    Mortal(report, config, source, out_dir, None).run(resume=False)
