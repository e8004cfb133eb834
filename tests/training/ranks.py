"""What the tests run on real gloo ranks; importable by the rank processes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reqdedup.batch import RequestBatch
from reqdedup.training import rank_run
from reqdedup.training.config import TrainingConfig
from reqdedup.training.gather import means_over_ranks
from reqdedup.training.loss import scale_for_mean_over_ranks
from reqdedup.training.norm import SyncBatchNorm1d, convert_sync_batchnorm
from reqdedup.training.optimizers import Optimizers
from reqdedup.training.ranks import sum_over_ranks
from reqdedup.training.sharded import Shards, build_sharded
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


def sparse_means(
    report: Any, rows: list[list[list[int]]], values: list[list[torch.Tensor]], sizes: list[tuple[int, int]]
) -> list[torch.Tensor]:
    """The means over ranks of this rank's rows of each table's gradient. rows, values: of each rank and table."""
    rank = dist.get_rank()
    gradients = [
        torch.sparse_coo_tensor(torch.tensor([row]), value, size, check_invariants=False)
        for row, value, size in zip(rows[rank], values[rank], sizes)
    ]
    return [mean.to_dense() for mean in means_over_ranks(gradients)]


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
        total, num_global = sum_over_ranks([float(loss_sum.detach()), num_terms])
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


def steps_of_shards(
    report: Any, cases: list[tuple[Task, nn.Module, list[RequestBatch]]], tables_from: int, num_steps: int
) -> list[dict[str, Any]]:
    """Weights and squares after steps with tables in parts, this rank on its own batch of each case; rank 0's."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    found = []
    for task, plain, batches in cases:
        model = build_sharded(plain.config, tables_from=tables_from, seed=0).double()
        model.load_state_dict(plain.state_dict())
        optimizer = optimizers_of(model)
        model = convert_sync_batchnorm(model, dist.new_group())
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, optimizer.tables)
        trained = DistributedDataParallel(model)
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss_sum, num_terms = task.loss(trained(batches[rank]), batches[rank])
            _, num_global = sum_over_ranks([float(loss_sum.detach()), num_terms])
            scale_for_mean_over_ranks(loss_sum, num_global, world_size).backward()
            optimizer.step(1.0)
        shards = Shards(model)
        assert all(len(x.weight) <= -(-x.num_embeddings // world_size) for x in shards.tables.values())
        with shards.whole(model.state_dict(), optimizer.squares) as (weights, squares):
            if rank == 0:
                found.append({"names": list(shards.tables), "weights": clone(weights), "squares": clone(squares)})
    return found


def clone(state: Any) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in state.items()}


def optimizers_of(model: nn.Module) -> Optimizers:
    return Optimizers(
        model,
        learning_rate=1e-3,
        table_learning_rate=0.05,
        table_optimizer="adagrad",
        weight_decay=0.0,
        clip_norm=0.0,
    )


def stop_and_resume(report: Any, config: TrainingConfig, source: Any, folder: str, stop_at: int) -> list[list[float]]:
    """Losses of a run without interruption, and of one that failed at a step and was resumed."""

    class Stopping(rank_run.RankRun):
        def step(self, *args: Any) -> Any:
            if self.result.steps == stop_at:
                raise RuntimeError("stopped")
            return super().step(*args)

    whole = rank_run.RankRun(report, config, source, Path(folder) / "whole", None).run(resume=False)
    with contextlib.suppress(RuntimeError):
        Stopping(report, config, source, Path(folder) / "resumed", None).run(resume=False)
    resumed = rank_run.RankRun(report, config, source, Path(folder) / "resumed", None).run(resume=True)
    return [whole.losses, resumed.losses]


def one_ahead(report: Any, config: TrainingConfig, source: Any, folder: str) -> tuple[int, int, str]:
    """(steps, epochs, what stopped it) of a run whose rank 1 is resumed behind its share, and rank 0 is not."""
    run = rank_run.RankRun(report, config, source, Path(folder), None)
    run.loader.set_epoch(run.rank)
    result = run.run(resume=False)
    return result.steps, result.epochs, result.stopped_by


def steps_of_run(report: Any, config: TrainingConfig, source: Any, folder: str) -> tuple[int, list[float], int]:
    """(steps that were planned, learning rate of each that was taken, as a share; groups of norms of two such runs)."""
    run, other = (rank_run.RankRun(report, config, source, Path(folder), None) for _ in range(2))
    norms = [x for one in (run, other) for x in one.model.modules() if isinstance(x, SyncBatchNorm1d)]
    planned = run.num_steps
    result = run.run(resume=False)
    rates = [config.rate_at(step, planned) for step in range(result.steps)]
    return planned, rates, len({id(norm.process_group) for norm in norms})


def steps_and_runs(report: Any, cases: Any, *runs: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """One start of ranks for steps of cases and for (function, arguments) of this module."""
    return gradients_of_steps(report, cases), [run(report, *args) for run, *args in runs]


def steps_of_tables(report: Any, steps: tuple[Any, ...], means: tuple[Any, ...]) -> list[Any]:
    """One start of ranks for what is asked of tables in parts and of whole ones."""
    return [steps_of_shards(report, *steps), sparse_means(report, *means)]
