"""Serving: a user is read and computed once per request, and an answer has the same bits whatever the caches held.

What a notebook needs, fetched when it is first used: `rd.serving.Ranker.of(rd.serving.Bundle.load(folder))`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Bundle": "models.bundle",
    "Client": "serving.client",
    "RankRequest": "serving.requests",
    "Ranker": "serving.ranking.ranker",
    "RecommendRequest": "serving.requests",
    "Recommender": "serving.funnel.recommender",
    "RetrieveRequest": "serving.requests",
    "Retriever": "serving.retrieval.retriever",
    "open_store": "sequences.places",
}
"""The room of each name."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"reqdedup.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'reqdedup.serving' has no attribute {name!r}; there are {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
