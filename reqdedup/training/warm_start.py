"""A trained model goes on with the days that were appended since: the normal case where a log grows every day.

It begins with the checkpoint's weights, moments and squares of tables, and with rates that warm up anew. It learns from
those requests of its training part that are later than the newest that the checkpoint has learned from; of labels that
were not yet mature then, from where their windows began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from reqdedup.models.checkpoint import CHECKPOINT_FORMAT, load_checkpoint
from reqdedup.training.config import TrainingConfig
from reqdedup.training.optimizers import Optimizers
from reqdedup.training.split import Later, Splits
from reqdedup.training.tasks import Task

LEARNED_UNTIL = "learned_until_us"
"""In a checkpoint: time of the newest request that was learned from [microseconds since 1970, UTC]."""


@dataclass(frozen=True)
class WarmStart:
    """state: of the checkpoint that a run begins with."""

    state: Mapping[str, Any]

    @classmethod
    def load(cls, config: TrainingConfig) -> WarmStart:
        """Raises ValueError for a checkpoint of another model or of an earlier version."""
        path = Path(config.warm_start)
        state = load_checkpoint(path)
        if state.get("format", 0) < CHECKPOINT_FORMAT or LEARNED_UNTIL not in state:
            raise ValueError(
                f"{path}: a checkpoint that says until when it has learned required for a warm start, found one of an "
                "earlier version; train anew"
            )
        then = TrainingConfig.from_dict(state["config"])
        for name, wanted, found in (
            ("model", config.model, then.model),
            ("table_optimizer", config.table_optimizer, then.table_optimizer),
            ("rate_factors", dict(config.rate_factors), dict(then.rate_factors)),
        ):
            if wanted != found:
                raise ValueError(f"{path}: a warm start needs the same {name}, {wanted} required, found {found}")
        return cls(state)

    def splits(self, splits: Splits) -> Splits:
        """The same parts, of the training part only what is later."""
        return replace(splits, train=Later(splits.train, self.state[LEARNED_UNTIL]))

    def fill(self, model: nn.Module, optimizer: Optimizers, task: Task) -> None:
        model.load_state_dict(self.state["model"])
        optimizer.load_state_dict(self.state["optimizer"])
        task.load_state_dict(self.state["log_q"])
