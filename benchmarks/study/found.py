"""The study's rows, found by comparison and arm, and what one of them says in words."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study import tables
from benchmarks.study.plan import LARGE
from benchmarks.study.tables import Row


class Study:
    """The rows, found by comparison and arm."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def block(self, name: str, log: str = LARGE) -> list[Row]:
        found = tables.select(self.rows, log, name)
        if not found:
            raise ValueError(f"study report: rows of `{log}: {name}` required, found none; run `make study`")
        return found

    def row(self, name: str, arm: str, log: str = LARGE) -> Row:
        (found,) = [row for row in self.block(name, log) if row["variant"] == arm]
        return found

    def best(self, name: str, arm: str) -> Row:
        """The best rate of an arm that was run at several."""
        found = [row for row in self.block(name) if row["variant"].startswith(f"{arm}, ")]
        sign = -1 if found[0]["task"] == "ranking" else 1
        return min(found, key=lambda row: sign * row["value"])

    def gradient(self, task: str, arm: str) -> Row:
        """Of the network."""
        found = tables.of_gradients(self.rows, task)
        (row,) = [row for row in found if row["variant"] == arm and row["group"] == "network"]
        return row

    def has(self, log: str) -> bool:
        return any(row.get("log") == log for row in self.rows)


def says(row: Row) -> str:
    """The main figure's difference with its unit, and on how many pairs it rests."""
    name = tables.SHOWN[row["task"]][0]
    unit = "%" if name == "auc" else " nats"
    low, high = row["differences"][name]["ci95"]
    mean = row["differences"][name]["mean"]
    if low is None:
        return f"{mean:+.3f}{unit} (one seed)"
    return f"{mean:+.3f}{unit} ({low:+.3f} to {high:+.3f}, {row['runs']} seeds)"


def no_worse(row: Row, bound: float) -> str:
    """Whether the interval leaves out losing more than `bound`, in the main figure's unit."""
    low, high = row["spread"]
    if low is None:
        return "one seed says nothing"
    name = tables.SHOWN[row["task"]][0]
    worst, best = (-low, -high) if name == "auc" else (high, low)
    unit = "%" if name == "auc" else " nats"
    if worst <= bound:
        return f"yes, it loses at most {max(worst, 0.0):.3f}{unit}"
    return f"no, it loses at least {best:.3f}{unit}" if best > bound else f"open, it may lose {worst:.3f}{unit}"
