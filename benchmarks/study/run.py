"""The runs of the plan: the library's own training on real ranks."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.study.arms import Arm, Block
from benchmarks.study.gradient import GradientFigures, compare_gradients
from benchmarks.study.log import StudyLog
from benchmarks.study.plan import LARGE, Sizes, configuration, make_log
from reqdedup.training import TrainingConfig
from reqdedup.training.launch import run_ranks
from reqdedup.training.metrics_file import METRICS_NAME
from reqdedup.training.plan import Source, source_for_ranks
from reqdedup.training.rank_run import RankRun

FIGURES = {
    "ranking": ("auc_click", "log_loss_click"),
    "retrieval": ("mean_log_rank", "recall_at_10", "recall_at_50", "recall_at_100"),
}
"""Of the library's judgement on held-out users; the first is the main one."""
METERS = {
    "rows": "rows",
    "passes": "requests",
    "users": "users",
    "effective_users": "effective_users",
    "false_negatives": "false_negative_rate",
}
"""What the steps of a run hold -> its column of metrics.csv, of which means over the steps are taken."""
PATIENCE_S = 86_400.0
"""Of a collective: who measures may stop a study for a while."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training to be done."""

    block: Block
    arm: Arm
    seed: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """figures: held-out.  meters: of METERS.  false_negatives: of the log, see `StudyLog`."""

    run: Run
    figures: dict[str, float]
    meters: dict[str, float]
    num_steps: int
    seconds: float
    false_negatives: float


@dataclass(frozen=True, kw_only=True)
class GradientRun:
    """Bias and noise of every arm of a block."""

    block: Block
    seed: int


Found = tuple[list[Outcome], list[tuple[GradientRun, list[GradientFigures]]]]


def run_all(
    runs: Sequence[Run],
    gradients: Sequence[GradientRun],
    sizes: Sizes,
    *,
    movielens: Path | None,
    say: Callable[[Outcome], None],
) -> Iterator[Found]:
    """What one seed, log and number of ranks after the other gave, as they are ready. say: called after each run."""
    for key, group in groupby(sorted(runs, key=_group), key=_group):
        of_group = [one for one in gradients if _group(one) == key]
        seed, name, _ = key
        with tempfile.TemporaryDirectory(prefix="study-") as folder:
            log = make_log(name, seed, sizes, Path(folder), movielens)
            yield _run_group(list(group), of_group, log, sizes, say)


def _run_group(
    runs: list[Run],
    gradients: list[GradientRun],
    log: StudyLog,
    sizes: Sizes,
    say: Callable[[Outcome], None],
) -> Found:
    """All of one log, seed and number of ranks, in one start of them."""
    outcomes: list[Outcome] = []

    def finished(found: tuple[int, dict[str, Any]]) -> None:
        number, values = found
        outcome = Outcome(run=runs[number], false_negatives=log.false_negatives, **values)
        check(outcome, sizes)
        outcomes.append(outcome)
        say(outcome)

    configs = [configuration(run.block, run.arm, log, sizes, run.seed) for run in runs]
    comparisons = [
        (
            {arm.name: configuration(one.block, arm, log, sizes, one.seed) for arm in one.block.arms},
            one.block.references[0],
        )
        for one in gradients
    ]
    found = run_ranks(
        run_on_rank,
        source_for_ranks(log.source),
        configs,
        comparisons,
        sizes.gradient_steps,
        world_size=runs[0].block.ranks,
        collective_timeout_s=PATIENCE_S,
        on_event=finished,
    )
    return outcomes, list(zip(gradients, found[0], strict=True))


def _group(run: Run | GradientRun) -> tuple[int, str, int]:
    return run.seed, run.block.log, run.block.ranks


def run_on_rank(
    report: Callable[[Any], None],
    source: Source,
    configs: Sequence[TrainingConfig],
    comparisons: Sequence[tuple[Mapping[str, TrainingConfig], str]],
    gradient_steps: int,
) -> list[list[GradientFigures]]:
    """One training after the other on this rank, of which the first rank reports (number, fields of the outcome); then
    the figures of each comparison of gradients."""
    for number, config in enumerate(configs):
        with tempfile.TemporaryDirectory(prefix="study-") as folder:
            run = RankRun(lambda _: None, config, source, Path(folder), None)
            result = run.run(resume=False)
            if run.rank == 0:
                values = {
                    "figures": {name: result.metrics[name] for name in FIGURES[config.task]},
                    "meters": meters_of(Path(folder) / METRICS_NAME),
                    "num_steps": result.steps,
                    "seconds": result.training_s,
                }
                report((number, values))
    return [compare_gradients(source, arms, reference, gradient_steps) for arms, reference in comparisons]


def meters_of(path: Path) -> dict[str, float]:
    """Means over the steps of a run."""
    with path.open(newline="") as file:
        steps = list(csv.DictReader(file))
    return {name: sum(float(step[column]) for step in steps) / len(steps) for name, column in METERS.items()}


def check(outcome: Outcome, sizes: Sizes) -> None:
    """Raises RuntimeError if a run's batches are not what the arm's name says."""
    run, meters = outcome.run, outcome.meters
    block, arm, passes, rows = run.block, run.arm, meters["passes"], meters["rows"]
    is_full = sizes.num_users >= 1_000 and block.log == LARGE
    wanted = {
        "about the rows, or passes, of the block": not is_full
        or 0.8 < (passes / block.passes if block.passes else rows / block.rows) < 1.2,
        "IID: a pass for every row": arm.chunk_rows != 1 or passes == rows,
        "chunks: passes of at most so many rows": arm.chunk_rows is None or passes >= rows / arm.chunk_rows,
        "whole requests: few passes": arm.chunk_rows is not None or passes < 0.5 * rows,
        "effective users at most users, users at most passes": meters["effective_users"] <= meters["users"] <= passes,
        "IID on a large catalogue: false negatives near 0": not is_full or outcome.false_negatives < 0.02,
    }
    failed = [claim for claim, holds in wanted.items() if not holds]
    if failed:
        raise RuntimeError(
            f"{block.log}, {block.name}, {arm.name}: {'; '.join(failed)} required; found {meters}, "
            f"{outcome.false_negatives:.4f} false negatives in the log"
        )
