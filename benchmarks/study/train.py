"""One run: an arm on a log with a seed, trained and evaluated. `ranking.py` and `retrieval.py` say loss and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from benchmarks.study.arms import Arm, Steps, Tuned
from benchmarks.study.batching import step_rows
from benchmarks.study.log import StudyLog
from benchmarks.study.models import ItemTable, StepBatch, TorchLog, set_norms

WARMUP_SHARE = 0.05


class StudyTask(Protocol):
    """name: `ranking` or `retrieval`.  clicks_only: learns from positive rows alone."""

    name: str
    clicks_only: bool

    def model(self, log: StudyLog) -> nn.Module: ...

    def loss(self, model: nn.Module, batch: StepBatch, item_UD: torch.Tensor, arm: Arm, ranks: int) -> torch.Tensor:
        """Mean loss of the step over the rows of all ranks that count."""
        ...

    def evaluate(self, model: nn.Module, table: ItemTable, data: TorchLog, rows: np.ndarray) -> dict[str, float]: ...


@dataclass(frozen=True)
class State:
    """A model in training."""

    model: nn.Module
    table: ItemTable


def new_state(task: StudyTask, log: StudyLog, arm: Arm, steps: Steps, seed: int) -> State:
    """Weights depend on the seed alone, so that arms of one seed start from the same ones."""
    torch.manual_seed(seed)
    model = task.model(log)
    set_norms(model, num_ranks=1 if arm.sync else steps.world_size, norm=arm.norm)
    return State(model, ItemTable(log.num_items, torch.Generator().manual_seed(seed)))


def train(
    task: StudyTask, log: StudyLog, arm: Arm, steps: Steps, tuned: Tuned, seed: int, *, stop_after: int | None = None
) -> tuple[State, np.ndarray]:
    """The trained state and the rows of every step. stop_after: end early, the learning rate not yet decayed."""
    rows_SWb = step_rows(
        log, log.rows(held_out=False, clicks_only=task.clicks_only), arm, steps, np.random.default_rng([seed, 11])
    )
    state, data = new_state(task, log, arm, steps, seed), TorchLog(log)
    optimiser = torch.optim.AdamW(state.model.parameters(), lr=1.0, weight_decay=tuned.weight_decay, fused=True)
    state.model.train()
    for step, rows_Wb in enumerate(rows_SWb[:stop_after]):
        decay = (
            arm.rate_factor * min(1.0, (step + 1) / max(1, WARMUP_SHARE * len(rows_SWb))) * (1 - step / len(rows_SWb))
        )
        for group in optimiser.param_groups:
            group["lr"] = decay * tuned.learning_rate
        batch = data.batch(torch.from_numpy(rows_Wb))
        item_UD = state.table.rows(batch.item_U)
        loss = task.loss(state.model, batch, item_UD, arm, steps.world_size)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        assert item_UD.grad is not None
        state.table.update(batch.item_U, item_UD.grad, decay * tuned.table_rate)
    return state, rows_SWb


@torch.no_grad()
def reestimate_norms(state: State, log: StudyLog, rows: np.ndarray, seed: int) -> None:
    """Running statistics of every norm anew, over rows drawn at random: separates bad statistics from bad weights."""
    norms = [module for module in state.model.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        # None is torch's word for a plain mean, which its types leave out; num_ranks is of the study's own norm.
        norm.momentum, norm.num_ranks = None, 1  # type: ignore[assignment]
    data, rng = TorchLog(log), np.random.default_rng([seed, 13])
    state.model.train()
    batch = data.batch(torch.from_numpy(rng.choice(rows, (1, min(16_384, len(rows))), replace=False)))
    state.model(batch, state.table.rows(batch.item_U))
