"""Two-towers side by side: each user's and item's vectors one after another, whose product is the mean of theirs.

It is served as any two-tower, with vectors as many times as wide: what a mean of seeds is to a ranking model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models import TwoTower
from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint
from reqdedup.training import TrainingConfig
from reqdedup.training.judgement.outcomes import Ranked
from reqdedup.training.plan import Source
from reqdedup.training.rank_run import RankRun


class SideBySide(nn.Module):
    """Has what judging asks of a TwoTower. towers: at least one, of any widths, with vectors of length 1."""

    def __init__(self, towers: Sequence[TwoTower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """[R, sum of widths] of users, [B, sum of widths] of items, of length 1."""
        user, item = zip(*(tower(batch) for tower in self._all()))
        return self._joined(user), self._joined(item)

    def encode_items(self, item_id_N: torch.Tensor, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[N, sum of widths]."""
        return self._joined([tower.encode_items(item_id_N, columns) for tower in self._all()])

    def _all(self) -> list[TwoTower]:
        return [cast(TwoTower, tower) for tower in self.towers]

    def _joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts), dim=1) / len(self.towers) ** 0.5


def judged_together(config: TrainingConfig, source: Source, runs: Sequence[Path]) -> Ranked:
    """The held-out rows of trained runs of one configuration but for the seed, all of them and beside the whole
    catalogue: eval_requests and catalogue_items must not draw by the seed. runs: their folders."""
    run = RankRun(lambda _: None, config, source, runs[0], None)
    towers = []
    for folder in runs:
        tower = run.new_model()
        tower.load_state_dict(load_checkpoint(folder / CHECKPOINT_NAME)["model"])
        towers.append(cast(TwoTower, tower))
    run.model = SideBySide(towers)
    found = run.evaluate(run.splits.test)
    assert isinstance(found, Ranked)
    return found
