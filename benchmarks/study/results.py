"""Result rows of the study from its outcomes: one per block and arm, differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study.arms import Block
from benchmarks.study.gradient import GradientFigures
from benchmarks.study.plan import Sizes
from benchmarks.study.run import FIGURES, GradientRun, Outcome
from benchmarks.study.statistics import paired

MAIN = {task: names[0] for task, names in FIGURES.items()}
IN_NATS = "mean_log_rank"
"""Its differences are in nats, all others in % of the reference; and the least is the best."""


def best_of(task: str, values: Mapping[Any, float]) -> Any:
    """The name with the best main figure."""
    return (min if MAIN[task] == IN_NATS else max)(values, key=lambda name: values[name])


def result_rows(outcomes: Iterable[Outcome], sizes: Sizes) -> list[dict[str, Any]]:
    """Rows for `write_results`, every arm over the seeds that it shares with the block's references."""
    by_block: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        by_block.setdefault((outcome.run.block.log, outcome.run.block.name), []).append(outcome)
    return [row for found in by_block.values() for row in _block_rows(found[0].run.block, found, sizes)]


def _block_rows(block: Block, outcomes: list[Outcome], sizes: Sizes) -> list[dict[str, Any]]:
    cells = {(outcome.run.arm.name, outcome.run.seed): outcome for outcome in outcomes}
    shared = [s for s in sorted({seed for _, seed in cells}) if all((name, s) in cells for name in block.references)]
    if not shared:
        return []
    main = MAIN[block.task]
    means = {name: sum(cells[name, seed].figures[main] for seed in shared) / len(shared) for name in block.references}
    reference = best_of(block.task, means)
    rows = []
    for arm in block.arms:
        seeds = [seed for seed in shared if (arm.name, seed) in cells]
        if not seeds:
            continue
        found = [cells[arm.name, seed] for seed in seeds]
        beside = [cells[reference, seed] for seed in seeds]
        differences = {}
        for name in found[0].figures:
            difference = paired(
                [o.figures[name] for o in found], [o.figures[name] for o in beside], relative=name != IN_NATS
            )
            differences[name] = {
                "mean": _rounded(difference.mean),
                "ci95": [_rounded(difference.low), _rounded(difference.high)],
                "deviation": _rounded(difference.deviation),
            }
        rows.append(
            {
                "claim": f"{block.log}: {block.name}",
                "variant": arm.name,
                "value": differences[main]["mean"],
                "unit": f"{'nats against' if main == IN_NATS else '% of'} {main} of `{reference}`",
                "target": None,
                "spread": differences[main]["ci95"],
                "runs": len(seeds),
                "task": block.task,
                "log": block.log,
                "reference": reference,
                "differences": differences,
                "figures": {name: [round(o.figures[name], 5) for o in found] for name in found[0].figures},
                "meters": {name: round(sum(o.meters[name] for o in found) / len(found), 5) for name in found[0].meters},
                "false_negatives": round(sum(o.false_negatives for o in found) / len(found), 5),
                "steps": round(sum(o.num_steps for o in found) / len(found)),
                "sizes": {"ranks": sizes.ranks, "users": sizes.num_users, "items": sizes.num_items},
                "seconds": round(sum(o.seconds for o in found) / len(found), 1),
            }
        )
    return rows


def gradient_rows(compared: Iterable[tuple[GradientRun, Sequence[GradientFigures]]]) -> list[dict[str, Any]]:
    """Rows for `write_results`: per block and arm the means over the seeds."""
    found: dict[tuple[str, str, str], list[GradientFigures]] = {}
    for run, of_run in compared:
        for one in of_run:
            found.setdefault((run.block.log, run.block.name, one.arm), []).append(one)
    rows = []
    for (log, block, arm), ones in found.items():
        ratios, biases = [one.noise_ratio for one in ones], [one.bias for one in ones]
        rows.append(
            {
                "claim": f"{log}: {block}: gradient",
                "variant": arm,
                "value": round(sum(ratios) / len(ratios), 3),
                "unit": "x the noise of IID",
                "target": None,
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
                "runs": len(ones),
                "bias": round(sum(biases) / len(biases), 3),
                "bias_spread": [round(min(biases), 3), round(max(biases), 3)],
                "effective_rows": round(sum(one.effective_rows for one in ones) / len(ones)),
                "log": log,
                "task": block.partition(",")[0],
            }
        )
    return rows


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
