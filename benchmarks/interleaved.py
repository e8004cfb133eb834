"""Ours and the baseline in turns in one process, so that whatever else the machine does meets both.

Time is CPU time of the process (`time.process_time`, all its threads): on a shared machine wall time measures the
neighbours. torch computes on one thread, so that CPU time is what one core needs. The figure is a ratio within each
round; the median of the rounds is reported with the lowest and the highest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Run = Callable[[], object]


@dataclass(frozen=True)
class Timings:
    """Seconds of each variant in each round."""

    seconds: dict[str, list[float]]

    def median(self, variant: str) -> float:
        return statistics.median(self.seconds[variant])

    def ratios(self, baseline: str, ours: str) -> list[float]:
        """How many times the baseline's seconds are ours, round by round."""
        return [theirs / own for theirs, own in zip(self.seconds[baseline], self.seconds[ours], strict=True)]


def interleaved(
    variants: Mapping[str, Run],
    *,
    rounds: int,
    repeats: Mapping[str, int] | None = None,
    units: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.process_time,
    warm_up: bool = True,
) -> Timings:
    """Seconds per call of each variant: every round runs all of them, every other round backwards.

    repeats: calls of a variant within a round (default 1); a short one needs several beside a long one.
    units: what one call of a variant does (rows, say): seconds are per unit then.
    """
    repeats, units = repeats or {}, units or {}
    if warm_up:
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in names:
            count = repeats.get(name, 1)
            started = clock()
            for _ in range(count):
                variants[name]()
            seconds[name].append((clock() - started) / count / units.get(name, 1))
    return Timings(seconds)


def ratio_row(
    claim: str,
    timings: Timings,
    *,
    baseline: str,
    ours: str = "reqdedup",
    sizes: Mapping[str, Any],
    target: float | None = None,
    predicted: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One result row: how many times faster `ours` is than `baseline`.

    predicted: the ratio of their floating-point operations.
    """
    ratios = timings.ratios(baseline, ours)
    return {
        "claim": claim,
        "variant": ours,
        "value": statistics.median(ratios),
        "unit": f"x less CPU time than {baseline}",
        "target": target,
        "spread": [min(ratios), max(ratios)],
        "runs": len(ratios),
        "predicted": predicted,
        "seconds": {name: timings.median(name) for name in (ours, baseline)},
        "sizes": dict(sizes),
        **more,
    }


def line(row: Mapping[str, Any]) -> str:
    """A result row for people."""
    parts = [f"{row['claim']:<34} {row['value']:>8.2f} {row['unit']}"]
    if row.get("spread"):
        parts.append("[{:.2f}, {:.2f}]".format(*row["spread"]))
    if row.get("target") is not None:
        verdict = "reached" if row["value"] >= row["target"] else "NOT reached"
        parts.append(f"target {row['target']:g} {verdict}")
    if row.get("predicted"):
        parts.append(f"operations say {row['predicted']:.1f}")
    return "  ".join(parts)
