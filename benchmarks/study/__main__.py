"""python -m benchmarks.study [--quick] [--tune] [--movielens FOLDER]: run the study, write its results and the report.

Seeds run one after the other and results are written after each, so an interrupted study leaves whole seeds behind.
`--tune` runs the IID arm over a grid of hyper-parameters instead, on a seed of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.record import write_results
from benchmarks.study import plan
from benchmarks.study.arms import Arm, Block, Steps, Tuned
from benchmarks.study.report import DOCUMENT, read_rows, report
from benchmarks.study.results import MAIN, RISES, gradient_rows, result_rows
from benchmarks.study.run import GradientRun, Outcome, Run, run_all, run_gradients

SEARCH = (
    ("learning_rate", (1e-3, 3e-3, 1e-2, 3e-2)),
    ("table_rate", (0.03, 0.1, 0.3, 1.0)),
    ("temperature", (0.05, 0.1, 0.2, 0.4)),
)
"""One coordinate after the other, each from the best so far; ranking has no temperature."""
MOVIELENS_FILES = ("u.data", "ml-100k.inter")
FIRST_GUESS = Tuned(learning_rate=3e-3, table_rate=0.1, weight_decay=0.01)


def study(sizes: plan.Sizes, *, movielens: Path | None, processes: int, only: str, write: bool) -> list[dict[str, Any]]:
    """Result rows of every block whose name and log contain `only`, and of the gradients where that leaves any."""
    blocks = plan.blocks(sizes, with_movielens=movielens is not None)
    blocks = [block for block in blocks if only in f"{block.log}: {block.name}"]
    of_gradients = gradients(blocks, sizes, processes=processes)
    runs = [
        Run(block=b, arm=arm, tuned=plan.TUNED[b.task, b.log], seed=seed, sizes=sizes, movielens=movielens)
        for b in blocks
        for arm in b.arms
        for seed in b.seeds(arm)
    ]
    outcomes: list[Outcome] = []
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for group in run_all(runs, processes=processes):
        outcomes += group
        _say(group, len(outcomes), len(runs), start)
        rows = result_rows(outcomes) + of_gradients
        if write:
            write_results("study", rows)
    return rows


def gradients(blocks: Sequence[Block], sizes: plan.Sizes, *, processes: int) -> list[dict[str, Any]]:
    """Result rows of bias and noise, in the main comparisons of the large catalogue at the smaller number of ranks."""
    name = f"{sizes.world_sizes[0]} ranks"
    runs = [
        GradientRun(block=block, tuned=plan.TUNED[block.task, block.log], seed=seed, sizes=sizes)
        for block in blocks
        if block.log == plan.LARGE and block.name.endswith(f", {name}")
        for seed in range(sizes.gradient_seeds)
    ]
    return gradient_rows(runs, run_gradients(runs, processes=processes)) if runs else []


def tune(sizes: plan.Sizes, *, movielens: Path | None, processes: int, only: str) -> list[dict[str, Any]]:
    """Rows of the search on IID with synchronised norms and all negatives."""
    rows = []
    for task, log in plan.TUNED:
        if (log == plan.MOVIELENS and movielens is None) or only not in f"{log}: {task}":
            continue
        arm = Arm(name="iid", sync=True, gather=True)
        per_rank = sizes.ranking_rows if task == "ranking" else sizes.retrieval_rows[0]
        steps = plan.MOVIELENS_STEPS if log == plan.MOVIELENS else Steps(world_size=8, rows=per_rank)
        block = Block(name="tuning", task=task, log=log, steps=steps, arms=(arm,), references=("iid",))
        found: dict[Tuned, Outcome] = {}
        best = FIRST_GUESS
        for name, values in SEARCH[: 3 if task == "retrieval" else 2]:
            grid = {replace(best, **{name: value}) for value in values} - set(found)
            runs = [
                Run(block=block, arm=arm, tuned=one, seed=plan.TUNING_SEED, sizes=sizes, movielens=movielens)
                for one in grid
            ]
            found |= {one.run.tuned: one for group in run_all(runs, processes=processes) for one in group}
            best = (max if MAIN[task] in RISES else min)(found, key=lambda one: found[one].figures[MAIN[task]])
        for tuned, outcome in found.items():
            rows.append(
                {
                    "claim": f"tuning: {log}, {task}, IID",
                    "variant": asdict(tuned),
                    "value": round(outcome.figures[MAIN[task]], 5),
                    "unit": MAIN[task],
                    "target": None,
                    "chosen": tuned == best,
                    "sizes": {"rows_per_step": outcome.rows_per_step, "steps": outcome.num_steps},
                }
            )
        print(log, task, best, found[best].figures, file=sys.stderr, flush=True)
    return rows


def _say(group: list[Outcome], done: int, total: int, start: float) -> None:
    """A line per run."""
    for outcome in group:
        run = outcome.run
        figures = ", ".join(f"{name} {value:.4f}" for name, value in outcome.figures.items())
        print(f"{run.block.log}: {run.block.name}: {run.arm.name}: seed {run.seed}: {figures}", file=sys.stderr)
    print(f"{time.perf_counter() - start:.0f} s, {done} of {total} runs", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no files written: does it run?")
    parser.add_argument("--tune", action="store_true", help="tune on IID instead")
    parser.add_argument(
        "--movielens", type=Path, default=None, help="folder of MovieLens 100K (ml-100k.inter or u.data)"
    )
    parser.add_argument("--processes", type=int, default=2)
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
    if arguments.tune:
        rows = tune(sizes, movielens=arguments.movielens, processes=arguments.processes, only=arguments.only)
        if write:
            write_results("study_tuning", rows)
        return 0
    rows = study(sizes, movielens=arguments.movielens, processes=arguments.processes, only=arguments.only, write=write)
    if write:
        DOCUMENT.write_text(report(rows, read_rows("study_windows")))
    for row in rows:
        low, high = row["spread"]
        print(f"{row['claim']:<44} {row['variant']:<52} {row['value']:+8.4f} [{low}, {high}] {row['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
