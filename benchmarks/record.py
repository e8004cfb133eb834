"""Result rows: what was measured, on which sizes, hardware, versions and commit, one JSON object a line.

A file in `benchmarks/results/` belongs to one benchmark and is replaced by its newest run, or those of its claims that
were measured; git keeps the older ones.
Every row has `claim`, `variant`, `value`, `unit`, `target` (what must be reached; null where there is none), `sizes`,
and the fields of `surroundings`; a repeated measurement adds `spread` (lowest and highest) and `runs`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("reqdedup", "pyarrow", "pyiceberg", "duckdb", "polars", "numpy", "torch", "triton")


def surroundings() -> dict[str, Any]:
    """Hardware, versions, commit and time: what a figure depends on beside its sizes."""
    return {
        "hardware": f"{cpu_model()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def write_results(name: str, rows: Iterable[Mapping[str, Any]], *, replaced: tuple[str, ...] = ("",)) -> Path:
    """Replace `results/<name>.jsonl` by these rows, each with the surroundings. replaced: how the claims begin whose
    rows make place; the others stay, with their own surroundings."""
    RESULTS.mkdir(exist_ok=True)
    path, around = RESULTS / f"{name}.jsonl", surroundings()
    there = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in there if not json.loads(line)["claim"].startswith(replaced)]
    path.write_text("".join(f"{line}\n" for line in (*kept, *(json.dumps({**row, **around}) for row in rows))))
    return path


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_gib() -> float:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def commit() -> str:
    """Short hash of HEAD, with `+` where tracked files other than results differ; empty outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = ["git", "status", "--porcelain", "-uno", "--", ":/", ":(exclude,top)benchmarks/results"]
        dirty = subprocess.run(changed, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
