"""Checkpoints: everything a run needs to go on, and a server to start, in one file written atomically.

    config        TrainingConfig as plain values      model       weights and buffers
    snapshot_id   of the table, or None               optimizer   its state
    step          steps done                          loaders     position of each rank's loader
    metrics       held-out metrics, once evaluated    log_q       item frequencies (retrieval)

Only tensors and plain values: `torch.load(weights_only=True)` reads it. The names in `model` are those of the plain
model (SyncBatchNorm has BatchNorm's), so serving builds it without training.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reqdedup.models.registry import MODELS, build_model

CHECKPOINT_NAME = "checkpoint.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds either the old checkpoint or the new one, whatever happens in between.

    Raises OSError (a full disk, for example) with the old one untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where a disk is full
        unfinished.unlink(missing_ok=True)
        raise OSError(
            f"{path}: the checkpoint could not be written ({error}); the one before it is untouched: make room and resume"
        ) from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote. Raises ValueError where the file is missing or is no checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["config"], state["model"], state["step"]
    except FileNotFoundError:
        raise ValueError(f"{path}: a checkpoint required, found no file; train the model first") from None
    except Exception as error:
        raise ValueError(
            f"{path}: a checkpoint of reqdedup.training required, found something else: {error}"
        ) from error
    return state


def load_model(path: Path) -> nn.Module:
    """The trained model of a checkpoint, in evaluation mode."""
    state = load_checkpoint(path)
    configs = {kind.task: kind.config for kind in MODELS.values()}
    model = build_model(configs[state["config"]["task"]].from_dict(state["config"]["model"]))
    model.load_state_dict(state["model"])
    return model.eval()
