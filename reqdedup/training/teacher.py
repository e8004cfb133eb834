"""Distillation: a trained ranking model says how likely each label is, and a smaller one learns that beside the labels.

target = (1 - weight) * label + weight * teacher's probability         of rows whose label is known
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig
from reqdedup.models.checkpoint import load_model
from reqdedup.models.config import ModelConfig
from reqdedup.models.registry import kind_of


class Teacher:
    """A trained ranking model, whose columns the student's loader must read too."""

    def __init__(self, path: str, student: ModelConfig, device: torch.device | str) -> None:
        """Raises ValueError for a checkpoint that is of no ranking model, lacks a label, or reads other histories."""
        self.model = load_model(Path(path)).to(device).requires_grad_(False)
        config, labels = cast(DCATConfig, self.model.config), cast(DCATConfig, student).labels
        if kind_of(config).task != "ranking":
            raise ValueError(f"{path}: a ranking model as teacher required, found one of {kind_of(config).task}")
        if missing := [label for label in labels if label not in config.labels]:
            raise ValueError(
                f"{path}: a teacher of the labels {', '.join(labels)} required, found one without {', '.join(missing)}"
            )
        if config.max_history != student.max_history:
            raise ValueError(
                f"{path}: a teacher that reads as much of a history required, max_history = {student.max_history}, "
                f"found {config.max_history}"
            )
        self._columns_L = [config.labels.index(label) for label in labels]
        self.columns = config.columns

    @torch.no_grad()
    def mixed(self, label_BL: torch.Tensor, batch: RequestBatch, *, weight: float) -> torch.Tensor:
        """Targets [B, labels]; a missing label stays missing. weight: of the teacher, 0 to 1."""
        probability_BL = self.model(batch)[:, self._columns_L].sigmoid().to(label_BL.dtype)
        return (1 - weight) * label_BL + weight * probability_BL
