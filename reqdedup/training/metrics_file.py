"""metrics.csv: a line per step of a run, written as it happens."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

METRICS_NAME = "metrics.csv"
METRIC_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "users",
    "effective_users",
    "requests",
    "rows",
    "moved_bytes",
    "dedup_factor",
    "false_negative_rate",
    "seconds",
    "rows_per_s",
    "memory_bytes",
)
"""dedup_factor: duplicated bytes per byte moved.  memory_bytes: resident now, of rank 0."""


class MetricsFile:
    """metrics.csv: one row per step, each on disk once written; rows after the step resumed from are dropped."""

    def __init__(self, path: Path, steps_done: int, *, write: bool) -> None:
        self._file: Any = None
        if not write:
            return
        kept = []
        if steps_done and path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= steps_done]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", buffering=1)
        self._writer = csv.writer(self._file)
        self._writer.writerows([METRIC_COLUMNS, *kept])

    def write(self, row: tuple[object, ...]) -> None:
        if self._file is not None:
            self._writer.writerow(row)

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()
