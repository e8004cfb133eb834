"""What training leaves and serving starts from: everything a run needs to go on, in one file written atomically.

    format        number of this list of keys         model       weights and buffers
    config        TrainingConfig as plain values      optimizer   its state
    snapshot_id   of the table, or None               loaders     position of each rank's loader
    step, rows    done                                tasks       what each rank's loss has counted
    losses        of every step                       metrics     held-out metrics, once evaluated
    watch         validation figures, best weights

Only tensors and plain values: `torch.load(weights_only=True)` reads it. The names in `model` are those of the plain
model (SyncBatchNorm has BatchNorm's), so serving builds it without training.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reqdedup.models.registry import build_model, config_from_dict

CHECKPOINT_NAME = "checkpoint.pt"
CHECKPOINT_FORMAT = 3
"""Version 0.1.0 wrote none, format 1 had another optimiser, and format 2 what rank 0 alone had counted, as `log_q`:
their models can be loaded, their runs not resumed."""


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
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError if a disk is full
        unfinished.unlink(missing_ok=True)
        raise OSError(
            f"{path}: the checkpoint could not be written ({error}); the one before it is untouched: make room and "
            "resume"
        ) from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote; tensors lie in the file until they are read.

    Raises ValueError if the file is missing, is no checkpoint, or is one of a format that this version does not know.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state["config"], state["model"], state["step"]
    except FileNotFoundError:
        raise ValueError(f"{path}: a checkpoint required, found no file; train the model first") from None
    except Exception as error:
        found = error if zipfile.is_zipfile(path) else "no file of torch.save"  # of which torch would speak as of mmap
        raise ValueError(
            f"{path}: a checkpoint of reqdedup.training required, found something else: {found}"
        ) from error
    check_format(str(path), state, CHECKPOINT_FORMAT)
    return state


def check_format(name: str, values: Mapping[str, Any], newest: int) -> None:
    """Raises ValueError unless the file's `format` is one that can be read; none at all is that of version 0.1.0."""
    found = values.get("format", 0)
    if not isinstance(found, int) or not 0 <= found <= newest:
        raise ValueError(f"{name}: format {newest} or older required, found {found!r}; read it with a newer reqdedup")


def load_model(path: Path) -> nn.Module:
    """The trained model of a checkpoint, in evaluation mode."""
    state = load_checkpoint(path)
    config = state["config"]
    model = build_model(config_from_dict(config["model"], task=config.get("task")))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(f"{path}: weights of the configured model required, found others: {error}") from error
    return model.eval()
