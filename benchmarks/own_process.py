"""Measurements in processes of their own: CPU time, wall time and peak memory above the start, variants in turns.

A benchmark module runs its own variants: `in_turns` starts `python -m MODULE ... --measure VARIANT` once per variant
and round, and the child answers with the line that `measure` made. Peak memory belongs to one measurement that way, and
a slow neighbour on the machine meets every variant. Ratios are taken within a round; CPU time is the figure that a busy
machine spoils least, and `load` says how busy it was. Linux only, for peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METRICS = {"cpu": "CPU time", "peak": "peak memory", "wall": "wall time"}


@dataclass(frozen=True)
class Measured:
    """One run: seconds of CPU and wall, peak bytes above what the process held before, 1-minute
    load, and its answer."""

    cpu: float
    wall: float
    peak: float
    load: float
    answer: Any = None


def measure(run: Callable[[], Any], *, check: Callable[[], Any] | None = None, repeats: int = 1) -> str:
    """The line by which a child answers: one run of `run`, measured in this process.

    repeats: of a short run; times are per run.  check: computes the answer by which variants are compared, after the
        measurement; else `run` returns it.
    Raises RuntimeError where the system does not tell peak memory.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise RuntimeError("peak memory: Linux required (/proc/self/status), found none; run the benchmark there")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    # VmHWM, not ru_maxrss: a child starts with its parent's.
    resident, before = _memory_bytes(status, "VmRSS"), _cpu_seconds()
    start = time.perf_counter()
    for _ in range(repeats):
        answer = run()
    wall, cpu = (time.perf_counter() - start) / repeats, (_cpu_seconds() - before) / repeats
    peak = _memory_bytes(status, "VmHWM") - resident
    if check is not None:
        answer = check()
    return json.dumps(asdict(Measured(cpu, wall, peak, os.getloadavg()[0], answer)))


def in_turns(
    module: str,
    variants: Sequence[str],
    arguments: Sequence[str] = (),
    *,
    rounds: int,
    compare: bool = True,
    arrow_pool: str = "",
) -> dict[str, list[Measured]]:
    """Measurements of each variant, one per round; every other round runs them backwards.

    compare: all answers must be equal.  arrow_pool: Arrow's allocator for all of them; its own choice by default.
        Raises RuntimeError where they are not, and where a child fails.
    """
    found: dict[str, list[Measured]] = {variant: [] for variant in variants}
    environment = os.environ | ({"ARROW_DEFAULT_MEMORY_POOL": arrow_pool} if arrow_pool else {})
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            command = [sys.executable, "-m", module, *arguments, "--measure", variant]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise RuntimeError(f"{module}: {variant} failed:\n{done.stderr}")
            found[variant].append(Measured(**json.loads(done.stdout.splitlines()[-1])))
            print(f"{module}: {variant} {found[variant][-1].cpu:.2f} s CPU", file=sys.stderr, flush=True)
    answers = {variant: one.answer for variant, runs in found.items() for one in runs}
    if compare and len({json.dumps(answer) for answer in answers.values()}) > 1:
        raise RuntimeError(f"{module}: the variants must give the same answer, found {answers}; nothing is reported")
    return found


def ratio_rows(
    claim: str,
    found: Mapping[str, Sequence[Measured]],
    *,
    ours: str,
    theirs: Sequence[str],
    targets: Mapping[str, float],
    sizes: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Result rows: how many times less of each metric `ours` takes than each of `theirs`.

    targets: by metric (`METRICS`).
    """
    for metric, name in METRICS.items():
        for variant in theirs:
            own, other = ([getattr(one, metric) for one in found[key]] for key in (ours, variant))
            ratios = [b / a for a, b in zip(own, other)]
            yield {
                "claim": f"{claim}: {name}",
                "variant": f"{ours} against {variant}",
                "value": statistics.median(ratios),
                "unit": f"x less {name}",
                "target": targets.get(metric),
                "spread": [min(ratios), max(ratios)],
                "runs": len(ratios),
                "ours": statistics.median(own),
                "theirs": statistics.median(other),
                "sizes": dict(sizes),
                "load": load(found),
            }


def shown(row: Mapping[str, Any]) -> str:
    """A result row for people; whether a target is reached from below or above is the benchmark's to say."""
    text = f"{row['claim']}  {row['variant']}: {row['value']:.2f} {row['unit']}"
    if row.get("spread"):
        text += " [{:.2f}, {:.2f}]".format(*row["spread"])
    return text + (f"  target {row['target']:g}" if row.get("target") is not None else "")


def load(found: Mapping[str, Sequence[Measured]]) -> float:
    """The median of the machine's 1-minute load over all runs: what else it did beside them."""
    return round(statistics.median(one.load for runs in found.values() for one in runs), 1)


def _memory_bytes(status: Path, name: str) -> int:
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{name}:"))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
