"""Whole DCAT steps on a GPU against the duplicated twin, in bfloat16: rows for `benchmarks.gpu_crossing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.workloads import batch_of, check_equal, dcat_config, twins

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
