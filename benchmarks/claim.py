"""One claim: the result rows that carry it, and its line. One whose rows were not measured is named on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

BY_HAND = "training_by_hand"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of the table.

    file: in `benchmarks/results`, without its ending.  rows: name, then (claim, variant) of a result row.
    text, ours: format strings over these names.  article: what Pinterest published.  command: that measures it again.
    by_hand: the same against code written by hand, a format string over `hand`: shapes of one task in
        `benchmarks.training_by_hand`, by name.
    """

    file: str
    rows: Mapping[str, tuple[str, str]]
    text: str
    ours: str
    article: str = ""
    by_hand: str = ""
    hand: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    command: str

    def line(self, folder: Path) -> str | None:
        """The row as Markdown; None if a result is missing. folder: of the result files."""
        found, by_hand = _found(self.rows, self.file, folder), _found(self.hand, BY_HAND, folder)
        if found is None:
            return None
        path = f"benchmarks/results/{self.file}.jsonl"
        cells = (
            self.text.format(**found),
            self.ours.format(**found),
            "" if by_hand is None else self.by_hand.format(**by_hand),
            self.article,
            f"`{self.command}`",
            f"[{path}]({path})",
        )
        return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _found(rows: Mapping[str, tuple[str, str]], file: str, folder: Path) -> dict[str, dict[str, Any]] | None:
    """The result row of each name; None, with a word on stderr, if one was not measured."""
    results = results_of(file, folder)
    missing = [claim for claim, variant in rows.values() if (claim, variant) not in results]
    if missing:
        print(f"{file}: not measured: {', '.join(missing)}", file=sys.stderr)
        return None
    return {name: results[key] for name, key in rows.items()}


def results_of(file: str, folder: Path = RESULTS) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of one result file by (claim, variant); none if it was not measured."""
    path = folder / f"{file}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["claim"], row["variant"]): row for row in map(json.loads, lines)}
