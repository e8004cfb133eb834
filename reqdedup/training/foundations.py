"""What a model begins with: vectors of items, and a pre-training, if it may be judged after that."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint
from reqdedup.models.foundation.beginning import EQUAL, fill_from_foundation
from reqdedup.models.known_vectors import fill_known_vectors
from reqdedup.training.config import TrainingConfig
from reqdedup.training.report import RESULT_NAME

SAME_PART = ("split_by", "held_out", "validation", "seed")
"""Fields that say which requests are held out."""


def begin(model: nn.Module, config: TrainingConfig) -> None:
    """The vectors and weights of the configuration's item_vectors and foundation into a new model."""
    if config.item_vectors:
        fill_known_vectors(model, config.item_vectors)
    if config.foundation:
        fill_from_foundation(model, config.foundation)


def finished_foundation(out_dir: Path | str, config: TrainingConfig, snapshot_id: int | None) -> Path:
    """Checkpoint of the pre-training in `out_dir`, with which a model of this configuration begins.

    snapshot_id: of the table that the model is trained on.
    Raises ValueError, one sentence, unless it is a finished one of the same snapshot, sizes and held-out requests: of
    others it may have read what the model is judged by.
    """
    out_dir = Path(out_dir)
    path, result = out_dir / CHECKPOINT_NAME, out_dir / RESULT_NAME
    if not (path.exists() and result.exists()):
        raise ValueError(f"{out_dir}: a finished pre-training required, found none")
    state = load_checkpoint(path)
    if state["step"] != json.loads(result.read_text())["steps"]:
        raise ValueError(f"{out_dir}: a finished pre-training required, found one that ended at step {state['step']}")
    then = TrainingConfig.from_dict(state["config"])
    for name, wanted, found in (
        ("snapshot_id", snapshot_id, state["snapshot_id"]),
        *((name, getattr(config, name), getattr(then, name)) for name in SAME_PART),
        *((name, getattr(config.model, name), getattr(then.model, name)) for name in EQUAL),
    ):
        if wanted != found:
            raise ValueError(f"{out_dir}: a pre-training of the same {name} required, {wanted!r}, found {found!r}")
    return path
