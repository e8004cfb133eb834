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
        self.ranks: int = rows[0]["sizes"]["ranks"]

    def block(self, name: str, log: str = LARGE) -> list[Row]:
        found = tables.select(self.rows, log, name)
        if not found:
            raise ValueError(f"study report: rows of `{log}: {name}` required, found none; run `make study`")
        return found

    def main(self, task: str, log: str = LARGE) -> list[Row]:
        """The comparison of every fix."""
        return self.block(f"{task}, {self.ranks} ranks", log)

    def row(self, task: str, arm: str, log: str = LARGE) -> Row:
        """Of the comparison of every fix."""
        (found,) = [row for row in self.main(task, log) if row["variant"] == arm]
        return found

    def best(self, name: str, arm: str) -> Row:
        """The best of the rates at which an arm was run, whose names begin so."""
        found = [row for row in self.block(name) if row["variant"].startswith(arm)]
        sign = -1 if found[0]["task"] == "ranking" else 1
        return min(found, key=lambda row: sign * row["value"])

    def gradient(self, task: str, arm: str) -> Row:
        (row,) = [row for row in tables.of_gradients(self.rows, task) if row["variant"] == arm]
        return row

    def has(self, log: str) -> bool:
        return any(row.get("log") == log for row in self.rows)


def worse(row: Row) -> tuple[float, float, float]:
    """Mean, low and high of what an arm loses against its reference, in the main figure's unit: more is worse."""
    low, high = (value if value is not None else sign * float("inf") for value, sign in zip(row["spread"], (-1, 1)))
    return (-row["value"], -high, -low) if row["task"] == "ranking" else (row["value"], low, high)


def unit(row: Row) -> str:
    return "%" if row["task"] == "ranking" else " nats"


def says(row: Row) -> str:
    """The main figure's difference with its unit, and on how many pairs it rests."""
    low, high = row["spread"]
    if low is None:
        return f"{row['value']:+.3f}{unit(row)} (one seed)"
    return f"{row['value']:+.3f}{unit(row)} ({low:+.3f} to {high:+.3f}, {row['runs']} seeds)"


def no_worse(row: Row, bound: float) -> str:
    """Whether the interval leaves out losing more than `bound`, in the main figure's unit."""
    _, best, worst = worse(row)
    if worst <= bound:
        return f"yes, it loses at most {max(worst, 0.0):.3f}{unit(row)}"
    if best > bound:
        return f"no, it loses at least {best:.3f}{unit(row)}"
    return f"open, it may lose {worst:.3f}{unit(row)}"


def recovered(without: Row, with_it: Row) -> str:
    """How much of what an arm loses a fix gives back."""
    lost, rest = worse(without), worse(with_it)
    if lost[1] <= 0:
        return "nothing was lost that shows"
    if rest[0] > lost[0]:
        return "no: it makes it worse"
    share = f"{100 * (1 - max(rest[0], 0.0) / lost[0]):.0f}% of what is lost"
    return f"partly: {share}" if rest[1] > 0 else f"yes: {share}, and no rest shows"
