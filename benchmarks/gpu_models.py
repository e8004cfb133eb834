"""Rows for `benchmarks.gpu_crossing`: whole DCAT steps against the duplicated twin, in bfloat16, and ranking with kept
contexts in device memory, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.serving import CACHE_BYTES, SCHEMA, TOGETHER, Traffic, ranking_model
from benchmarks.workloads import batch_of, check_equal, dcat_config, twins
from reqdedup.models import DCAT
from reqdedup.models.transforms import Transforms
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import RankRequest

SHAPES = ((256, 8, 128), (1024, 4, 128), (4096, 1, 128), (16_384, 1, 16))
"""History, requests, candidates each: as many as the duplicated twin's memory takes."""


def model_rows(time_in_turns: Callable[[dict[str, Callable[[], object]]], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per history length: forward, backward and optimiser, ours against the twin."""
    return [_row(time_in_turns, *shape) for shape in SHAPES]


def _row(
    time_in_turns: Callable[[dict[str, Callable[[], object]]], Mapping[str, Any]],
    length: int,
    num_requests: int,
    candidates: int,
) -> dict[str, Any]:
    config = dcat_config(width=256, num_heads=4, max_history=length)
    row = {
        "claim": "DCAT step",
        "variant": "reqdedup",
        "value": None,
        "unit": "x faster than duplicated",
        "target": None,
        "sizes": {"history": length, "requests": num_requests, "candidates": candidates, "width": config.width},
    }
    batch = batch_of([length] * num_requests, [candidates] * num_requests).to("cuda")
    ours, duplicated = twins(config)
    for trainer in (ours, duplicated):
        trainer.model.to("cuda")
    try:
        check_equal(ours, duplicated, batch, batch)

        def step(trainer: Any) -> Callable[[], object]:
            def run() -> None:
                with torch.autocast("cuda", torch.bfloat16):
                    trainer.step(batch)

            return run

        timed = time_in_turns({"reqdedup": step(ours), "duplicated": step(duplicated)})
    except (ValueError, RuntimeError) as error:
        return row | {"error": str(error)[:200]}
    mine, theirs = timed["reqdedup"], timed["duplicated"]
    return row | {
        "value": theirs.median / mine.median,
        "milliseconds": {"reqdedup": mine.median, "duplicated": theirs.median},
        "spread": [theirs.low / mine.high, theirs.high / mine.low],
    }


def serving_rows(
    time_in_turns: Callable[[dict[str, Callable[[], object]]], Mapping[str, Any]],
    *,
    lengths: Sequence[int] = (512, 2048),
    device: str = "cuda",
) -> Iterator[dict[str, Any]]:
    """Ranking in process, contexts in device memory: kept against once per request, 8 requests of 100 candidates a
    step. Nothing is timed unless logits agree with a CPU's to 1e-5 of their standard deviation, in float32."""
    for max_history in lengths:
        traffic = Traffic(max_history, 100)
        requests = traffic.requests(TOGETHER)
        model = ranking_model(max_history)
        row = {
            "claim": "ranking, kept context",
            "variant": "reqdedup",
            "value": None,
            "unit": "x faster than once per request",
            "target": None,
            "sizes": {"history": max_history, "requests": TOGETHER, "candidates": 100, "width": model.config.width},
        }
        try:
            wanted = _answers(_ranker(model, "cpu", CACHE_BYTES), requests)
            keeps, forgets = (_ranker(model, device, num_bytes) for num_bytes in (CACHE_BYTES, 0))
            for ranker in (keeps, keeps, forgets):  # the second time its contexts are kept
                error = float(np.abs(_answers(ranker, requests) - wanted).max() / wanted.std())
                if not error <= 1e-5:
                    raise ValueError(f"gate: logits differ by {error:.3g} of their standard deviation from a CPU's")
            timed = time_in_turns(
                {
                    "reqdedup": partial(keeps.step, requests),
                    "once per request": partial(forgets.step, requests),
                }
            )
        except (ValueError, RuntimeError) as error:
            yield row | {"error": str(error)[:200]}
            continue
        mine, theirs = timed["reqdedup"], timed["once per request"]
        yield row | {
            "value": theirs.median / mine.median,
            "milliseconds": {"reqdedup": mine.median, "once per request": theirs.median},
            "spread": [theirs.low / mine.high, theirs.high / mine.low],
        }


def _ranker(model: DCAT, device: str, cache_bytes: int) -> Ranker:
    transforms = Transforms.of(model.config, SCHEMA)
    copy = DCAT(model.config).eval()
    copy.load_state_dict(model.state_dict())
    options: dict[str, Any] = {"deterministic": False, "device": device, "cache": ContextCache(cache_bytes)}
    return Ranker(copy, transforms, fingerprint="bench", **options)


def _answers(ranker: Ranker, requests: Sequence[RankRequest]) -> np.ndarray:
    """Logits of all requests, one after the other; raises what a request was refused with."""
    return np.concatenate([np.concatenate(list(ranker.rank(request).logits.values())) for request in requests])
