"""The validation figure while a model learns: which weights were best, and when to stop."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

METRICS = {"ranking": ("auc_", 1), "retrieval": ("mean_log_rank", -1), "pretraining": ("mean_log_rank", -1)}
"""Beginning of the watched figure's name by task, and 1 if more of it is better; of several labels the mean."""


class Watch:
    """patience: validations without a better figure, after which training ends; 0: never.

    best, best_step, best_epochs: figure, step and whole epochs of the best weights, which `weights` holds.
    history: (step, figure) of each.
    """

    def __init__(self, task: str, patience: int) -> None:
        self._prefix, self._sign = METRICS[task]
        self._patience = patience
        self.best, self.best_step, self.best_epochs = math.nan, 0, 0
        self.weights: dict[str, torch.Tensor] | None = None
        self.history: list[tuple[int, float]] = []

    def take(self, step: int, figures: dict[str, float], model: nn.Module, *, epochs: int = 0) -> None:
        """Note the figures of this step; keep the weights if they are the best so far. epochs: whole ones until it."""
        values = [value for name, value in figures.items() if self._is_watched(name) and not math.isnan(value)]
        value = sum(values) / len(values) if values else math.nan
        self.history.append((step, value))
        if not math.isnan(value) and (math.isnan(self.best) or self._sign * (value - self.best) > 0):
            self.best, self.best_step, self.best_epochs = value, step, epochs
            self.weights = copy.deepcopy(model.state_dict())

    @property
    def is_over(self) -> bool:
        """Whether the best figure is `patience` validations old."""
        since = sum(step > self.best_step for step, _ in self.history)
        return self._patience > 0 and since >= self._patience

    def epochs_before(self, step: int) -> int | None:
        """Whole epochs until the best weights; None if they are those of this step, or there are none."""
        return self.best_epochs if self.weights is not None and self.best_step < step else None

    def _is_watched(self, name: str) -> bool:
        return name.startswith(self._prefix) and not name.endswith(("_chance", "_unseen"))

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_step": self.best_step,
            "best_epochs": self.best_epochs,
            "history": self.history,
            "weights": self.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step, self.weights = state["best"], state["best_step"], state["weights"]
        self.best_epochs = state.get("best_epochs", 0)  # not in checkpoints of earlier versions
        self.history = [(int(step), float(value)) for step, value in state["history"]]
