"""Bias and noise of the gradient: why an arm loses.

At one common state of a model (trained on IID for a quarter of a run) the gradient of every arm is computed over many
steps of its own loader, by the library's step over all ranks, and no weight moves. Of all parameters but the tables:

    noise     trace of the covariance of g_k; beside IID's it gives the effective batch, rows * noise(IID) / noise(arm)
    bias      |mean g - mean g(IID)| / |mean g(IID)|, less what noise alone would give (so it may come out as 0)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reqdedup.training import TrainingConfig
from reqdedup.training.lockstep import in_lockstep
from reqdedup.training.plan import Source
from reqdedup.training.rank_run import RankRun

TRAINED_SHARE, USED_SHARE = 0.25, 0.9
"""Of a run; and of an epoch, whose last steps are smaller."""


class Moments:
    """Running mean and noise of gradients (Welford)."""

    def __init__(self) -> None:
        self.steps = self.rows = 0
        self.mean_G = torch.zeros(())
        self._squares = 0.0

    def add(self, g_G: torch.Tensor, rows: int = 0) -> None:
        self.steps, self.rows = self.steps + 1, self.rows + rows
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
    """bias: in lengths of the reference's mean gradient.  noise_ratio: noise beside the reference's.
    effective_rows: what the noise leaves of a reference's step."""

    arm: str
    bias: float
    noise_ratio: float
    effective_rows: float


def compare_gradients(
    source: Source, arms: Mapping[str, TrainingConfig], reference: str, num_steps: int
) -> list[GradientFigures]:
    """Figures of every arm, on this rank as on all others. The reference is drawn twice, so that its own row shows the
    method's error."""
    first = RankRun(_quiet, arms[reference], source, Path(), None)
    short = replace(arms[reference], num_steps=max(1, int(TRAINED_SHARE * first.num_steps)), eval_requests=0)
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        run = RankRun(_quiet, short, source, Path(folder), None)
        run.run(resume=False)
    weights = run.model.state_dict()
    wanted = moments(arms[reference], source, weights, num_steps=2 * num_steps, epoch=1)
    found = []
    for name, config in arms.items():
        seen = moments(config, source, weights, num_steps=num_steps, epoch=0)
        length = float(wanted.mean_G.square().sum()) - wanted.squared_error
        distance = float((seen.mean_G - wanted.mean_G).square().sum()) - seen.squared_error - wanted.squared_error
        found.append(
            GradientFigures(
                arm=name,
                bias=float(np.sqrt(max(distance, 0.0) / length)) if length > 0 else float("nan"),
                noise_ratio=seen.noise / wanted.noise,
                effective_rows=wanted.rows / wanted.steps * wanted.noise / seen.noise,
            )
        )
    return found


def moments(
    config: TrainingConfig, source: Source, weights: Mapping[str, torch.Tensor], *, num_steps: int, epoch: int
) -> Moments:
    """Over `num_steps` steps spread evenly over an epoch of the arm's batches; a collective."""
    run = RankRun(_quiet, config, source, Path(), None)
    run.model.load_state_dict(weights)
    run.loader.set_epoch(epoch)
    chosen = set(np.linspace(0, USED_SHARE * run.num_steps, num_steps).astype(int).tolist())
    found = Moments()
    for step, (batch, rows) in enumerate(in_lockstep(run.loader)):
        if step in chosen and rows >= 2:
            run.stepper.compute_gradients(batch, step)
            found.add(gradient_of(run), rows)
    return found


def gradient_of(run: RankRun) -> torch.Tensor:
    """The step's gradient of everything but tables, the mean over all ranks' terms."""
    tables = set(run.optimizer.tables)
    named = [(name, parameter) for name, parameter in run.model.named_parameters() if name not in tables]
    return torch.cat([p.grad.flatten() for _, p in named if p.grad is not None])


def _quiet(progress: Any) -> None:
    pass
