"""A trained model goes on with the days that were appended since: the normal case where a log grows every day.

It begins with the checkpoint's weights, moments and squares of tables, and with rates that warm up anew. It learns from
those requests of its training part that are later than the newest that the checkpoint has learned from; of labels that
were not yet mature then, from where their windows began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from reqdedup.models.checkpoint import load_checkpoint
from reqdedup.models.registry import name_of
from reqdedup.training.config import TrainingConfig
from reqdedup.training.optimizers import Optimizers
from reqdedup.training.ranks import rank_and_world_size
from reqdedup.training.split import Later, Splits
from reqdedup.training.tasks import Task

OLDEST_FORMAT = 2
"""Of a checkpoint to begin with; those before had another optimiser."""
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
        if state.get("format", 0) < OLDEST_FORMAT or LEARNED_UNTIL not in state:
            raise ValueError(
                f"{path}: a checkpoint that says until when it has learned required for a warm start, found one of an "
                "earlier version; train anew"
            )
        wanted, found = _must_be_same(config), _must_be_same(TrainingConfig.from_dict(state["config"]))
        for name in sorted(wanted.keys() | found.keys(), key=lambda name: (name != "model.kind", name)):
            if wanted.get(name) != found.get(name):
                raise ValueError(
                    f"{path}: a warm start needs the same {name}, {wanted.get(name)!r} required, found "
                    f"{found.get(name)!r}"
                )
        return cls(state)

    def splits(self, splits: Splits) -> Splits:
        """The same parts, of the training part only what is later."""
        return replace(splits, train=Later(splits.train, self.state[LEARNED_UNTIL]))

    def fill(self, model: nn.Module, optimizer: Optimizers, task: Task) -> None:
        model.load_state_dict(self.state["model"])
        optimizer.load_state_dict(self.state["optimizer"])
        of_ranks = self.state["tasks"] if "tasks" in self.state else [self.state["log_q"]]
        task.load_state_dict(of_ranks[rank_and_world_size()[0] % len(of_ranks)])


def _must_be_same(config: TrainingConfig) -> dict[str, Any]:
    """Fields by name, those of the model as model.NAME."""
    model = {"kind": name_of(config.model), **asdict(config.model)}
    return {
        "table_optimizer": config.table_optimizer,
        "rate_factors": dict(config.rate_factors),
        **{f"model.{name}": value for name, value in model.items()},
    }
