"""Store, move and compute request-level data once per request.

    import reqdedup as rd

    lake = rd.open()  # where that is: reqdedup.environment
    lake.tables()

The names below are the verbs that people use (docs/library.md); the rooms stay where they are, for example
`from reqdedup import storage`. Importing the package does no work and loads nothing else: each name is fetched when it
is first used, so that neither torch nor pyarrow is there before something needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Activity": "storage",
    "Column": "schema",
    "ColumnMapping": "convert",
    "DCATConfig": "models",
    "EngagementTable": "lake",
    "Kind": "schema",
    "Lake": "lake",
    "Layout": "storage",
    "Level": "schema",
    "TrainingConfig": "training",
    "TwoTowerConfig": "models",
    "open": "lake",
    "train": "training",
}
"""The room of each name."""

if TYPE_CHECKING:
    from reqdedup.convert import ColumnMapping
    from reqdedup.lake import EngagementTable, Lake, open
    from reqdedup.models import DCATConfig, TwoTowerConfig
    from reqdedup.schema import Column, Kind, Level
    from reqdedup.storage import Activity, Layout
    from reqdedup.training import TrainingConfig, train

__all__ = [
    "Activity",
    "Column",
    "ColumnMapping",
    "DCATConfig",
    "EngagementTable",
    "Kind",
    "Lake",
    "Layout",
    "Level",
    "TrainingConfig",
    "TwoTowerConfig",
    "__version__",
    "open",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"reqdedup.{_HOMES[name]}"), name)
    if name == "serving":
        return importlib.import_module("reqdedup.serving")
    raise AttributeError(f"module 'reqdedup' has no attribute {name!r}; there are {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "serving"})
