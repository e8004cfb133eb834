"""Does the deterministic mode hold here? That bits are equal is a property of this torch and this processor.

A server asks before it takes requests: with its own model, requests are ranked alone from nothing, then in one step
with contexts that were extended, then again with contexts that were kept. Takes well under a second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from reqdedup.models.transforms import history_name
from reqdedup.schema import ITEM_ID, Column, Kind
from reqdedup.sequences.store import Window
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import Ranked, RankRequest
from reqdedup.values import type_of

LENGTHS = (600, 257, 130, 64, 17, 1, 0)
ROWS = (33, 1, 10, 16, 50, 7, 3)


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """differing: what had other bits than a request alone with a fresh context; empty if the mode holds.

    seconds: that it took.
    """

    differing: tuple[str, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        return not self.differing

    def __str__(self) -> str:
        if self.holds:
            return f"deterministic mode: holds here, tried with this model in {self.seconds:.2f} s"
        return (
            f"deterministic mode: does not hold with torch {torch.__version__} on this processor, "
            f"{', '.join(self.differing)} "
            "had other bits than a request alone; answers are right up to rounding"
        )


def self_test(ranker: Ranker) -> SelfTest:
    """Tries it on a copy of the ranker; what the ranker keeps stays as it is."""
    started = time.perf_counter()
    requests = _requests(ranker)
    alone = [ranker.with_cache(ContextCache(0)).rank(request) for request in requests]
    keeping = ranker.with_cache(ContextCache(1 << 30))
    keeping.step([_earlier(request) for request in requests])
    tried: dict[str, Sequence[object]] = {
        "extended contexts in a step": keeping.step(requests),
        "kept contexts in a step": keeping.step(requests[::-1])[::-1],
        "kept contexts alone": [keeping.rank(request) for request in requests],
    }
    differing = tuple(name for name, answers in tried.items() if not _are_equal(alone, answers))
    return SelfTest(differing=differing, seconds=time.perf_counter() - started)


def _are_equal(alone: Sequence[Ranked], answers: Sequence[object]) -> bool:
    return all(
        isinstance(answer, Ranked)
        and all(np.array_equal(one.logits[label], answer.logits[label], equal_nan=True) for label in one.logits)
        for one, answer in zip(alone, answers, strict=True)
    )


def _requests(ranker: Ranker) -> list[RankRequest]:
    rng, transforms = np.random.default_rng(0), ranker.transforms

    def values(column: Column, count: int) -> np.ndarray:
        kind = type_of(column)
        shape = (count, column.width) if column.kind is Kind.VECTOR else (count,)
        if kind.kind == "f":
            return rng.standard_normal(shape).astype(kind)
        return rng.integers(0, 2 if kind.kind == "b" else 2**31, shape).astype(kind)

    requests = []
    for user_id, (length, num_rows) in enumerate(zip(LENGTHS, ROWS, strict=True)):
        length = min(length, transforms.cut.max_events)
        events = {history_name(column.name): values(column, length) for column in transforms.history_columns}
        requests.append(
            RankRequest(
                user_id=user_id,
                candidates={
                    ITEM_ID: rng.integers(0, 2**40, num_rows),
                    **{column.name: values(column, num_rows) for column in transforms.item_columns},
                },
                request={column.name: values(column, 1)[0] for column in transforms.request_columns},
                history=Window(events, 0, length, 0),
            )
        )
    return requests


def _earlier(request: RankRequest) -> RankRequest:
    window = request.history
    assert window is not None
    end = window.end * 9 // 10
    columns = {name: x[:end] for name, x in window.columns.items()}
    return replace(request, history=Window(columns, 0, end, 0))
