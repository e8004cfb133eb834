"""python -m benchmarks.study [--quick] [--movielens FOLDER]: run the study, write its results and the report.

Seeds run one after the other and results are written after each, so an interrupted study leaves whole seeds behind.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.record import write_results
from benchmarks.study import plan
from benchmarks.study.gradient import GradientFigures
from benchmarks.study.report import DOCUMENT, read_rows, report
from benchmarks.study.results import gradient_rows, result_rows
from benchmarks.study.run import GradientRun, Outcome, Run, run_all

MOVIELENS_FILES = ("u.data", "ml-100k.inter")


def study(sizes: plan.Sizes, *, movielens: Path | None, only: str, write: bool) -> list[dict[str, Any]]:
    """Result rows of every block whose name and log contain `only`, and of the gradients of its main ones."""
    blocks = plan.blocks(sizes, with_movielens=movielens is not None)
    blocks = [block for block in blocks if only in f"{block.log}: {block.name}"]
    runs = [Run(block=b, arm=arm, seed=seed) for b in blocks for arm in b.arms for seed in range(b.num_seeds)]
    gradients = [
        GradientRun(block=block, seed=seed)
        for block in blocks
        if block.log == plan.LARGE and block.name.endswith(" ranks")
        for seed in range(sizes.gradient_seeds)
    ]
    outcomes: list[Outcome] = []
    compared: list[tuple[GradientRun, list[GradientFigures]]] = []
    rows: list[dict[str, Any]] = []
    say = Progress(len(runs))
    for found, of_gradients in run_all(runs, gradients, sizes, movielens=movielens, say=say):
        outcomes, compared = outcomes + found, compared + of_gradients
        rows = result_rows(outcomes, sizes) + gradient_rows(compared)
        if write:
            write_results("study", rows)
    return rows


class Progress:
    """A line per run."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, time.monotonic()

    def __call__(self, outcome: Outcome) -> None:
        self.done += 1
        run = outcome.run
        figures = ", ".join(f"{name} {value:.4f}" for name, value in outcome.figures.items())
        print(
            f"{time.monotonic() - self.started:.0f} s, {self.done} of {self.total}: {run.block.log}: {run.block.name}: "
            f"{run.arm.name}: seed {run.seed}: {figures}",
            file=sys.stderr,
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no files written: does it run?")
    parser.add_argument(
        "--movielens", type=Path, default=None, help="folder of MovieLens 100K (ml-100k.inter or u.data)"
    )
    parser.add_argument("--only", default="", help="only blocks whose `log: name` contains this; nothing is written")
    arguments = parser.parse_args(argv)
    sizes = plan.QUICK if arguments.quick else plan.FULL
    if arguments.movielens is None:
        print(
            "study: without the MovieLens log; --movielens FOLDER adds it (make study MOVIELENS=FOLDER)",
            file=sys.stderr,
        )
    elif not any((arguments.movielens / name).is_file() for name in MOVIELENS_FILES):
        parser.error(
            f"--movielens: a folder with {' or '.join(MOVIELENS_FILES)} required, found {arguments.movielens} without; "
            "unpack MovieLens 100K (https://grouplens.org/datasets/movielens/100k/) and name its folder"
        )
    write = not (arguments.quick or arguments.only)
    rows = study(sizes, movielens=arguments.movielens, only=arguments.only, write=write)
    if write:
        DOCUMENT.write_text(report(rows, read_rows("study_windows")))
    for row in rows:
        low, high = row["spread"]
        print(f"{row['claim']:<44} {row['variant']:<52} {row['value']:+8.4f} [{low}, {high}] {row['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
