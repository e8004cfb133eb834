"""Runs of the plan in worker processes, one thread each; a run is a function of (block, arm, seed)."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.arms import Arm, Block, Tuned
from benchmarks.study.batching import Meters, measure
from benchmarks.study.gradient import GradientFigures, compare_gradients
from benchmarks.study.log import StudyLog
from benchmarks.study.models import TorchLog
from benchmarks.study.plan import LARGE, Sizes, make_log
from benchmarks.study.ranking import Ranking
from benchmarks.study.retrieval import Retrieval
from benchmarks.study.train import StudyTask, reestimate_norms, train


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training to be done. movielens: the folder of that log, where a run needs it."""

    block: Block
    arm: Arm
    tuned: Tuned
    seed: int
    sizes: Sizes
    movielens: Path | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """figures: held-out; names ending in _norms with re-estimated norms."""

    run: Run
    figures: dict[str, float]
    meters: dict[str, float]
    num_steps: int
    rows_per_step: int
    seconds: float


def run_all(runs: list[Run], *, processes: int) -> Iterator[list[Outcome]]:
    """Outcomes of one seed and log after the other, as they are ready: so a worker makes each log once."""
    ordered = sorted(runs, key=_seed_and_log)
    groups = [list(group) for _, group in itertools.groupby(ordered, key=_seed_and_log)]
    if processes == 1:
        _one_thread()
        yield from map(run_group, groups)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _one_thread) as pool:
        yield from pool.imap_unordered(run_group, groups)


def run_group(runs: list[Run]) -> list[Outcome]:
    return [run_one(run) for run in runs]


def _seed_and_log(run: Run) -> tuple[int, str]:
    return run.seed, run.block.log


def run_one(run: Run) -> Outcome:
    """Train, evaluate, measure; raises RuntimeError where the batches are not what the arm's name says."""
    start = time.perf_counter()
    block, arm = run.block, run.arm
    log = _log(block.log, run.seed, run.sizes, run.movielens)
    task = make_task(block.task, log, run.tuned)
    state, rows_SWb = train(task, log, arm, block.steps, run.tuned, run.seed)
    data, held_out = TorchLog(log), log.rows(held_out=True, clicks_only=task.clicks_only)
    figures = task.evaluate(state.model, state.table, data, held_out)
    train_rows = log.rows(held_out=False, clicks_only=task.clicks_only)
    if arm.norm and not arm.sync:
        reestimate_norms(state, log, train_rows, run.seed)
        again = task.evaluate(state.model, state.table, data, held_out)
        figures |= {f"{name}_norms": value for name, value in again.items()}
    engaged = _engaged(block.log, run.seed, run.sizes, run.movielens)
    meters = measure(log, rows_SWb, arm=arm, num_rows=len(train_rows), engaged=engaged)
    check_meters(meters, run, rows_SWb[0].size, log)
    return Outcome(
        run=run,
        figures=figures,
        meters=asdict(meters),
        num_steps=len(rows_SWb),
        rows_per_step=rows_SWb[0].size,
        seconds=time.perf_counter() - start,
    )


def make_task(task: str, log: StudyLog, tuned: Tuned) -> StudyTask:
    return Ranking() if task == "ranking" else Retrieval(log, tuned.temperature)


def check_meters(meters: Meters, run: Run, rows: int, log: StudyLog) -> None:
    """The arm must hold what it stands for: passes, users, false negatives."""
    arm, ranks = run.arm, run.block.steps.world_size
    requests_per_row = len(log.user_R) / len(log.item_B)
    wanted = {
        "IID: a pass for nearly every row": arm.order != "iid" or meters.passes > 0.9 * rows,
        "sorted: hardly more passes than requests": arm.order != "sorted" or meters.passes < 0.5 * rows + ranks,
        "chunks: small passes": arm.chunk_rows is None or meters.passes >= 0.8 * rows / arm.chunk_rows,
        "equal passes: no row twice": run.block.steps.passes == 0
        or meters.epochs <= 1.0
        or run.sizes.num_users < 5_000,
        "effective users at most users": meters.effective_users <= meters.users <= meters.passes + 1e-9,
        "IID on a large catalogue: false negatives near 0": run.block.log != LARGE
        or run.sizes.num_users < 5_000
        or arm.order != "iid"
        or meters.after_mask < 0.005,
        "a rank's sorted rows: false negatives": run.block.task != "retrieval"
        or arm.order != "sorted"
        or arm.gather
        or ranks < 8
        or meters.false_negatives > 0.05,
    }
    failed = [claim for claim, holds in wanted.items() if not holds]
    if failed:
        raise RuntimeError(
            f"{run.block.log}, {run.block.name}, {arm.name}: {'; '.join(failed)} required; found {meters}, "
            f"{rows} rows per step, {1 / requests_per_row:.1f} rows per request"
        )


@functools.lru_cache(maxsize=1)
def _log(name: str, seed: int, sizes: Sizes, movielens: Path | None) -> StudyLog:
    return make_log(name, seed, sizes, movielens)


@functools.lru_cache(maxsize=1)
def _engaged(name: str, seed: int, sizes: Sizes, movielens: Path | None) -> Any:
    return _log(name, seed, sizes, movielens).engaged_pairs()


def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class GradientRun:
    """Bias and noise of every arm of a block."""

    block: Block
    tuned: Tuned
    seed: int
    sizes: Sizes


def run_gradients(runs: list[GradientRun], *, processes: int) -> list[list[GradientFigures]]:
    """Figures of each run, in order."""
    if processes == 1:
        _one_thread()
        return [_gradients_of(run) for run in runs]
    with multiprocessing.get_context("spawn").Pool(processes, _one_thread) as pool:
        return pool.map(_gradients_of, runs, chunksize=1)


def _gradients_of(run: GradientRun) -> list[GradientFigures]:
    log = _log(run.block.log, run.seed, run.sizes, None)
    (reference,) = [arm for arm in run.block.arms if arm.name == run.block.references[0]]
    return compare_gradients(
        make_task(run.block.task, log, run.tuned),
        log,
        run.block.arms,
        reference=reference,
        steps=run.block.steps,
        tuned=run.tuned,
        seed=run.seed,
        num_steps=run.sizes.gradient_steps,
    )
