"""The kinds of models, by name. A new one is a folder beside these with the same files, and one line here.

Nothing else asks what a configuration is: what depends on the kind is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from reqdedup.models.config import ModelConfig
from reqdedup.models.dcat import DCAT, DCATConfig
from reqdedup.models.dcat import naive as naive_dcat
from reqdedup.models.early import EarlyRanker, EarlyRankerConfig
from reqdedup.models.early import naive as naive_early
from reqdedup.models.foundation import Foundation, FoundationConfig
from reqdedup.models.foundation import naive as naive_foundation
from reqdedup.models.two_tower import TwoTower, TwoTowerConfig
from reqdedup.models.two_tower import naive as naive_two_tower


@dataclass(frozen=True)
class ModelKind:
    """One kind of model.

    config: class of its configurations.  model, naive: classes of the model and of its twin computed once per row, both
    made from a configuration.  task: what it is trained for, a name in `reqdedup.training.tasks`.
    """

    config: type[ModelConfig]
    model: type[nn.Module]
    naive: type[nn.Module]
    task: str


MODELS = {  # of several for a task the first is what `reqdedup train` takes unless it is told another
    "dcat": ModelKind(DCATConfig, DCAT, naive_dcat.DCAT, task="ranking"),
    "early_ranker": ModelKind(EarlyRankerConfig, EarlyRanker, naive_early.EarlyRanker, task="ranking"),
    "foundation": ModelKind(FoundationConfig, Foundation, naive_foundation.Foundation, task="pretraining"),
    "two_tower": ModelKind(TwoTowerConfig, TwoTower, naive_two_tower.TwoTower, task="retrieval"),
}


def name_of(config: ModelConfig) -> str:
    """Name of the kind of model that this configures. Raises ValueError if no line of the registry has its class."""
    for name, kind in MODELS.items():
        if kind.config is type(config):
            return name
    raise ValueError(
        f"a configuration of one of the models {', '.join(MODELS)} required, found {type(config).__name__}; add its "
        "kind to reqdedup.models.registry"
    )


def kind_of(config: ModelConfig) -> ModelKind:
    """Raises ValueError if no line of the registry has the configuration's class."""
    return MODELS[name_of(config)]


def build_model(config: ModelConfig) -> nn.Module:
    """A new model with fresh weights."""
    return kind_of(config).model(config)


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Plain values, ready for JSON; `config_from_dict` is the inverse."""
    return {"kind": name_of(config), **config.to_dict()}


_KIND_OF_TASK = {"ranking": "dcat", "retrieval": "two_tower"}
"""Files of version 0.1.0 name the task and not the kind."""


def config_from_dict(values: Mapping[str, Any], *, task: str | None = None) -> ModelConfig:
    """task: what a file of version 0.1.0 names in place of the kind.

    Raises ValueError if the kind or a field is unknown.
    """
    fields = dict(values)
    kind = fields.pop("kind", None) or _KIND_OF_TASK.get(task or "")
    if kind not in MODELS:
        raise ValueError(f"a model: kind one of {', '.join(MODELS)} required, found {kind!r}")
    try:
        return MODELS[kind].config.from_dict(fields)
    except TypeError as error:
        raise ValueError(f"a model of kind {kind}: a field is unknown or missing: {error}") from error
