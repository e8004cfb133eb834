"""A ranking or retrieval model that begins with what a foundation model has learned of histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from reqdedup.models.checkpoint import load_checkpoint
from reqdedup.models.config import ModelConfig
from reqdedup.models.registry import config_from_dict

TAKEN = ("embedding.item.", "embedding.of_event.", "transformer.")
"""Beginnings of the names of what is taken over."""

EQUAL = (
    *("width", "num_heads", "num_layers", "ffn_width", "layer", "positions", "positions_from", "max_history"),
    *("history_categories", "item_table_rows", "category_table_rows"),
)
"""Fields of the model's configuration that a foundation and a model that begins with it have in common."""


def fill_from_foundation(model: nn.Module, path: Path | str) -> None:
    """Tables of items and events and the transformer of the checkpoint at `path` into the model.

    Raises ValueError for a checkpoint of another kind of model, and for another configuration, naming what differs.
    """
    state = read_foundation(Path(path), cast(ModelConfig, model.config))
    taken = {name: weight for name, weight in state["model"].items() if name.startswith(TAKEN)}
    model.load_state_dict({**model.state_dict(), **taken})


def read_foundation(path: Path, config: ModelConfig) -> dict[str, Any]:
    """The checkpoint of a foundation that a model of this configuration can begin with; ValueError as above."""
    state = load_checkpoint(path)
    values = state["config"]["model"]
    if values.get("kind") != "foundation":
        raise ValueError(f"{path}: the checkpoint of a foundation model required, found {values.get('kind')}")
    then = config_from_dict(values)
    for name in EQUAL:
        if getattr(then, name) != getattr(config, name):
            raise ValueError(
                f"{path}: a foundation of the same {name} required, {getattr(config, name)!r}, found "
                f"{getattr(then, name)!r}"
            )
    return state
