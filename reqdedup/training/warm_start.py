"""A trained model goes on with the days that were appended since: the normal case where a log grows every day.

It begins with the checkpoint's weights, moments and squares of tables, and with rates that warm up anew. It learns from
those requests of its training part that are later than the newest that the checkpoint has learned from; of labels that
were not yet mature then, from where their windows began.

What a run has learned from is known once it has been through an epoch: requests come in any order. A checkpoint of
before (ended by num_steps or patience, stopped, or whose best weights are earlier ones) says no more than the run that
it began with: who goes on from it learns from that on, from some requests a second time, and leaves none out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint
from reqdedup.models.registry import name_of
from reqdedup.training.config import TrainingConfig
from reqdedup.training.held_out import Learned, check_held_out, learned_part
from reqdedup.training.optimizers import Optimizers
from reqdedup.training.ranks import rank_and_world_size
from reqdedup.training.split import Later, Splits
from reqdedup.training.tasks import Task

OLDEST_FORMAT = 2
"""Of a checkpoint to begin with; those before had another optimiser."""
LEARNED_UNTIL = "learned_until_us"
"""In a checkpoint: time of the newest request that was learned from, with all before [microseconds since 1970, UTC];
None if that is not known."""


@dataclass(frozen=True)
class WarmStart:
    """What a run begins with.

    state: of the checkpoint; None without one.  after_us: it learns from later requests; None: from all.
    """

    state: Mapping[str, Any] | None = None
    after_us: int | None = None

    @classmethod
    def of(cls, config: TrainingConfig, splits: Splits) -> WarmStart:
        """splits: of the run. Raises ValueError for a checkpoint that cannot be gone on from, and for one, a
        foundation, a teacher or vectors of items that have read what the run is judged by."""
        for other in filter(None, (config.foundation, config.teacher)):
            check_held_out(other, Learned.of_checkpoint(load_checkpoint(Path(other))), config, splits)
        if config.item_vectors and config.held_out and (learned := Learned.of_bundle(config.item_vectors)):
            check_held_out(config.item_vectors, learned, config, splits)
        if not config.warm_start:
            return cls()
        state = cls.load(config)
        check_held_out(config.warm_start, Learned.of_checkpoint(state), config, splits, and_validation=True)
        return cls(state, state[LEARNED_UNTIL])

    @classmethod
    def load(cls, config: TrainingConfig) -> Mapping[str, Any]:
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
        return state

    @classmethod
    def of_run(cls, out_dir: Path) -> WarmStart:
        """As the run in `out_dir` began, which is then filled with its own checkpoint: the one before may be gone."""
        return cls(None, learned_part(load_checkpoint(out_dir / CHECKPOINT_NAME)).get("after_us"))

    def splits(self, splits: Splits) -> Splits:
        """The same parts, of the training part only what is later."""
        return splits if self.after_us is None else replace(splits, train=Later(splits.train, self.after_us))

    def fill(self, model: nn.Module, optimizer: Optimizers, task: Task) -> None:
        if self.state is None:
            return
        model.load_state_dict(self.state["model"])
        optimizer.load_state_dict(self.state["optimizer"])
        of_ranks = self.state["tasks"] if "tasks" in self.state else [self.state["log_q"]]
        task.load_state_dict(of_ranks[rank_and_world_size()[0] % len(of_ranks)])

    def learned_until(self, task: Task, loaders: Sequence[Mapping[str, Any]], epochs: int | None) -> int | None:
        """LEARNED_UNTIL of weights that have been through so many whole epochs; None: as many as the ranks' loaders."""
        if epochs is None:
            epochs = min(loader["position"]["epoch"] for loader in loaders)
        return task.learned_until_us if epochs else self.after_us


def _must_be_same(config: TrainingConfig) -> dict[str, Any]:
    """Fields by name, those of the model as model.NAME."""
    model = {"kind": name_of(config.model), **asdict(config.model)}
    return {
        "table_optimizer": config.table_optimizer,
        "rate_factors": dict(config.rate_factors),
        **{f"model.{name}": value for name, value in model.items()},
    }
