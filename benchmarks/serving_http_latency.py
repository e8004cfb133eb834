"""How long requests wait at 70% of saturation, and what becomes of three times as many: an open loop, one worker.

Requests come as those of many users do, independent of one another: the times between them are exponential. Saturation
is the highest rate with under 0.1% refused, sought in short loads and then borne for as long as the others. Answered
requests of an overloaded server wait no longer than its queue is: its bound, in milliseconds, decides and not the load.
A row is the load with the median 99th percentile of several, since one slow second of a machine is the slowest percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import Traffic
from benchmarks.serving_http_load import Answers, LoadClient, http_request
from benchmarks.serving_http_process import Process, cpu_of, filled_store, row, stored
from reqdedup.serving.scheduler import SchedulerLimits

REFUSED_AT_SATURATION = 0.001
STEP, FINEST = 1.2, 1.02
LOADS = 3
COUNTED = (
    "process_resident_memory_bytes",
    "reqdedup_steps_total",
    "reqdedup_step_requests_total",
    "reqdedup_step_seconds_total",
    "reqdedup_waited_seconds_total",
)
"""By the server: where the time of an answer goes."""


def latency(
    folder: Path, load: LoadClient, shapes: Sequence[tuple[int, int, int]], seconds: float
) -> Iterator[dict[str, Any]]:
    """p50 and p99 of the answered, in the deterministic mode, at 100 candidates; share of the time that the server
    computes, length and requests of its steps, and the mean wait for one."""
    length, candidates, _ = max(shapes, key=lambda shape: shape[1] == 100)
    traffic = Traffic(max_history=length, candidates=candidates)
    store, wait_ms = filled_store(folder, length, 256 * length), SchedulerLimits().max_wait_ms
    with Process.of("deterministic", length, store, wait_ms=wait_ms) as process:

        def offered(rate: float, seconds: float) -> Answers:
            requests = stored(traffic.requests(max(8, int(rate * seconds))))
            return load.open(process.url, [http_request(one) for one in requests], rate)

        cpu_of(process, load, stored(traffic.every_user()), 1)
        probe = [http_request(one) for one in stored(traffic.requests(200))]
        rate = 0.8 * len(probe) / load.closed(process.url, probe, 2).seconds
        saturation, at_saturation = _saturation(offered, rate, seconds)
        p99_at_saturation = float(np.percentile(at_saturation.answered_ms, 99))
        shares, loads = {"70%": 0.7, "3x": 3.0}, []
        for _ in range(LOADS):
            loads.append({name: _load(process, offered, saturation * share, seconds) for name, share in shares.items()})
        for name, share in shares.items():
            several = sorted((one[name] for one in loads), key=lambda load: load["p99"])
            least, middle, most = several[0], several[LOADS // 2], several[-1]
            yield row(
                f"http latency, L {length}, {candidates} candidates",
                f"{name} of saturation",
                middle["p99"],
                "ms, p99 of the answered",
                most=4.0 * middle["p50"] if share < 1 else 2.0 * p99_at_saturation,
                spread=[least["p99"], most["p99"]],
                runs=LOADS,
                p99_at_saturation=p99_at_saturation,
                saturation=saturation,
                rate=saturation * share,
                sizes={"history": length, "candidates": candidates, "seconds": seconds, "wait_ms": wait_ms},
                **{counted: value for counted, value in middle.items() if counted != "p99"},
            )


def _load(
    process: Process, offered: Callable[[float, float], Answers], rate: float, seconds: float
) -> dict[str, float]:
    before = {name: process.value(name) for name in COUNTED}
    answers = offered(rate, seconds)
    resident, steps, requests, busy_s, waited_s = (process.value(name) - before[name] for name in COUNTED)
    p50, p99 = np.percentile(answers.answered_ms, [50, 99])
    return {
        "p99": float(p99),
        "p50": float(p50),
        "answered": len(answers.answered_ms),
        "refused": answers.refused,
        "grown_bytes": resident,
        "busy": busy_s / answers.seconds,
        "step_ms": 1000 * busy_s / steps,
        "step_requests": requests / steps,
        "waited_ms": 1000 * waited_s / requests,
    }


def _saturation(offered: Callable[[float, float], Answers], rate: float, seconds: float) -> tuple[float, Answers]:
    """The highest rate with under 0.1% refused in so many seconds, to 2%, and its answers. One that is too high in a
    fifth of the time, twice, is not tried for longer."""

    def answers_of(rate: float, seconds: float, tries: int = 1) -> Answers | None:
        for _ in range(tries):
            answers = offered(rate, seconds)
            if answers.refused <= REFUSED_AT_SATURATION * len(answers.status):
                return answers
        return None

    short = seconds / 5
    while answers_of(rate, short, 2) is None:
        rate /= STEP
    step = STEP
    while step > FINEST:
        if answers_of(rate * step, short, 2) is None:
            step **= 0.5
        else:
            rate *= step
    while (answers := answers_of(rate, seconds)) is None:
        rate /= FINEST
    return rate, answers
