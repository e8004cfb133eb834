"""What anchored windows cost in quality: histories cut at a start that moves in steps, against the last S events.

    python -m benchmarks.study.windows [--movielens FOLDER] [--quick]

An anchored window lets all requests of a user share one context pass, but holds S - stride / 2 events on average where
the last-S window holds S. So two questions: against last-S at the same limit, and against last-S with as many events on
average. The library's own models and training loop, one process, paired seeds (synthetic: log, split and weights;
MovieLens: split and weights). Rows go to `benchmarks/results/study_windows.jsonl`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import write_results
from benchmarks.study.log import table_of
from benchmarks.study.statistics import paired
from reqdedup.logs import SyntheticLogConfig, read_log, synthesize, synthetic_schema
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.storage import TableSource
from reqdedup.training import TrainingConfig
from reqdedup.training.rank_run import run_rank

STORED_HISTORY = 256
FIGURE = {"ranking": "auc_click", "retrieval": "mean_log_rank"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """max_events, stride: of the windows; stride 1 keeps the last max_events."""

    name: str
    max_events: int
    stride: int


REFERENCE = Arm(name="last 32", max_events=32, stride=1)
ARMS = (
    REFERENCE,
    Arm(name="anchored 32, stride 8", max_events=32, stride=8),
    Arm(name="last 28", max_events=28, stride=1),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One log and seed: every task and arm on it. movielens: the folder of that log, None for the synthetic one."""

    movielens: Path | None
    seed: int
    num_users: int
    num_steps: int


def figures_of(run: Run) -> dict[tuple[str, str], float]:
    """(task, arm) -> held-out figure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = _table(run, Path(folder))
        return {
            (task, arm.name): _train(run, task, arm, source, Path(folder) / f"{task}, {arm.name}")
            for task in FIGURE
            for arm in ARMS
        }


def _table(run: Run, folder: Path) -> TableSource:
    if run.movielens is not None:
        log = read_log(run.movielens, preset="movielens", max_history=STORED_HISTORY)
        return table_of(folder, log.schema, iter(log))
    config = SyntheticLogConfig(
        seed=run.seed,
        num_users=run.num_users,
        num_items=2_000,
        mean_requests_per_user=4,
        mean_fan_out=12,
        max_fan_out=48,
        history_scale=1 / 20,
        max_history=STORED_HISTORY,
    )
    return table_of(folder, synthetic_schema(config), synthesize(config))


def _train(run: Run, task: str, arm: Arm, source: TableSource, out_dir: Path) -> float:
    sizes: dict[str, Any] = {
        "width": 32,
        "num_layers": 2,
        "max_history": arm.max_events,
        "positions": "rope",  # no table of positions, so that all arms start from the same weights
        "item_table_rows": 4096,
    }
    model: DCATConfig | TwoTowerConfig
    if task == "ranking":
        model = DCATConfig.from_schema(source.schema, labels=["click"], **sizes)
    else:
        model = TwoTowerConfig.from_schema(source.schema, **sizes)
    config = TrainingConfig(
        model=model,
        num_steps=run.num_steps,
        max_epochs=0,
        table_optimizer="adamw",
        requests_per_step=64,
        learning_rate=3e-3,
        weight_decay=0.01,
        world_size=1,
        seed=run.seed,
        history_stride=arm.stride,
        held_out=0.2,
        eval_requests=100_000,
        prefetch_batches=0,
    )
    return run_rank(lambda event: None, config, source, str(out_dir)).metrics[FIGURE[task]]


def rows_of(log: str, runs: Sequence[Run], found: Sequence[dict[tuple[str, str], float]]) -> list[dict[str, Any]]:
    """One row per task and arm: its figure, and the paired difference to the last-S window of the same limit."""
    rows = []
    for task, figure in FIGURE.items():
        references = [figures[task, REFERENCE.name] for figures in found]
        for arm in ARMS:
            values = [figures[task, arm.name] for figures in found]
            difference = paired(values, references, relative=task == "ranking")
            rows.append(
                {
                    "claim": f"windows: {log}, {task}",
                    "variant": arm.name,
                    "value": difference.mean,
                    "unit": f"{'%' if task == 'ranking' else 'nats'} of {figure} against {REFERENCE.name}",
                    "target": None,
                    "spread": [difference.low, difference.high] if np.isfinite(difference.low) else None,
                    "runs": len(values),
                    "figures": values,
                    "mean_events": arm.max_events - (arm.stride / 2 if arm.stride > 1 else 0),
                    "sizes": {"steps": runs[0].num_steps, "requests_per_step": 64, "users": runs[0].num_users},
                }
            )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.windows", description=__doc__.splitlines()[0])
    parser.add_argument("--movielens", type=Path, help="folder of MovieLens 100K, whose log is then used too")
    parser.add_argument("--quick", action="store_true", help="two small seeds in this process, nothing is recorded")
    options = parser.parse_args(argv)
    seeds, users, steps = (2, 30, 5) if options.quick else (4, 1_000, 200)
    started, rows = time.monotonic(), []
    for log, folder in (("synthetic", None), ("movielens", options.movielens)):
        if log == "movielens" and folder is None:
            continue
        runs = [Run(movielens=folder, seed=seed, num_users=users, num_steps=steps) for seed in range(seeds)]
        if options.quick:
            found = [figures_of(run) for run in runs]
        else:
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                found = pool.map(figures_of, runs, chunksize=1)
        rows += rows_of(log, runs, found)
    for row in rows:
        low, high = row["spread"] or (float("nan"),) * 2
        print(f"{row['claim']:<30} {row['variant']:<24} {row['value']:+.3f} [{low:+.3f}, {high:+.3f}] {row['unit']}")
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    if not options.quick:
        print(write_results("study_windows", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
