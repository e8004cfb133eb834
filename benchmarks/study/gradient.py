"""Bias and noise of the gradient: why an arm loses.

At one common state of a model (trained on IID for a quarter of a run, so that it still learns) the gradient of every
arm is computed over many steps. For a group of parameters, the network's or the item table's, and steps k of an arm:

    noise     trace of the covariance of g_k; beside IID's it gives the effective batch, rows * noise(IID) / noise(arm)
    bias      |mean g - mean g(IID)| / |mean g(IID)|, less what noise alone would give (so it may come out as 0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.study.arms import Arm, Steps, Tuned
from benchmarks.study.batching import step_rows
from benchmarks.study.log import StudyLog
from benchmarks.study.models import ItemTable, StepBatch, TorchLog, set_norms
from benchmarks.study.train import State, StudyTask, train

TRAINED_SHARE = 0.25
GROUPS = ("network", "items")


class Moments:
    """Running mean and noise of one group's gradients (Welford)."""

    def __init__(self) -> None:
        self.steps = 0
        self.mean_G = torch.zeros(())
        self._squares = 0.0

    def add(self, g_G: torch.Tensor) -> None:
        self.steps += 1
        change_G = g_G - self.mean_G
        self.mean_G = self.mean_G + change_G / self.steps
        self._squares += float(change_G @ (g_G - self.mean_G))

    @property
    def noise(self) -> float:
        """Unbiased trace of the covariance of one step's gradient."""
        return self._squares / max(self.steps - 1, 1)

    @property
    def squared_error(self) -> float:
        """Expected squared length of the mean's own error."""
        return self.noise / max(self.steps, 1)


@dataclass(frozen=True, kw_only=True)
class GradientFigures:
    """bias: in lengths of the reference's mean gradient.  noise_ratio: noise beside the reference's."""

    arm: str
    group: str
    bias: float
    noise_ratio: float
    effective_rows: float


def compare_gradients(
    task: StudyTask,
    log: StudyLog,
    arms: Sequence[Arm],
    *,
    reference: Arm,
    steps: Steps,
    tuned: Tuned,
    seed: int,
    num_steps: int,
) -> list[GradientFigures]:
    """Figures of every arm and group. The reference is drawn twice, so that its own row shows the method's error."""
    rows = log.rows(held_out=False, clicks_only=task.clicks_only)
    total = steps.count(len(rows), steps.rows)
    state, _ = train(task, log, reference, steps, tuned, seed, stop_after=max(1, int(TRAINED_SHARE * total)))
    wanted = _moments(task, state, log, reference, steps, seed + 1_000, 2 * num_steps)
    found = []
    for arm in arms:
        seen = _moments(task, state, log, arm, steps, seed, num_steps)
        for group in GROUPS:
            ours, theirs = seen[group], wanted[group]
            length = float(theirs.mean_G.square().sum()) - theirs.squared_error
            distance = float((ours.mean_G - theirs.mean_G).square().sum()) - ours.squared_error - theirs.squared_error
            found.append(
                GradientFigures(
                    arm=arm.name,
                    group=group,
                    bias=float(np.sqrt(max(distance, 0.0) / length)) if length > 0 else float("nan"),
                    noise_ratio=ours.noise / theirs.noise,
                    effective_rows=steps.world_size * steps.rows * theirs.noise / ours.noise,
                )
            )
    return found


def _moments(
    task: StudyTask, state: State, log: StudyLog, arm: Arm, steps: Steps, seed: int, num_steps: int
) -> dict[str, Moments]:
    """Over `num_steps` steps spread evenly over an epoch of the arm's order; the state stays as it is."""
    rows = log.rows(held_out=False, clicks_only=task.clicks_only)
    epoch_SWb = step_rows(log, rows, arm, replace(steps, num_steps=None), np.random.default_rng([seed, 19]))
    model = task.model(log)
    model.load_state_dict(state.model.state_dict())
    set_norms(model, num_ranks=1 if arm.sync else steps.world_size, norm=True)
    model.train()
    data, found = TorchLog(log), {group: Moments() for group in GROUPS}
    for step in np.unique(np.linspace(0, len(epoch_SWb) - 1, num_steps).astype(int)):
        batch = data.batch(torch.from_numpy(epoch_SWb[step]))
        for group, gradient_G in zip(GROUPS, _gradients(task, model, state.table, batch, arm, steps.world_size)):
            found[group].add(gradient_G)
    return found


def _gradients(
    task: StudyTask, model: torch.nn.Module, table: ItemTable, batch: StepBatch, arm: Arm, ranks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    item_UD = table.rows(batch.item_U)
    loss = task.loss(model, batch, item_UD, arm, ranks)
    *network, item_gradient_UD = torch.autograd.grad(loss, [*model.parameters(), item_UD], materialize_grads=True)
    table_VD = torch.zeros_like(table.weight_VD)
    table_VD[batch.item_U[:-1]] = item_gradient_UD[:-1]
    return torch.cat([gradient.flatten() for gradient in network]), table_VD.flatten()
