"""Result rows of the study from its outcomes: one per block and arm, differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.study.arms import Block
from benchmarks.study.gradient import GradientFigures
from benchmarks.study.run import GradientRun, Outcome
from benchmarks.study.statistics import paired

MAIN = {"ranking": "auc", "retrieval": "log_rank"}
RELATIVE = {"auc", "log_loss", "recall_at_10", "recall_at_50", "recall_at_100"}
"""Differences in % of the reference; log rank's in nats."""
RISES = {"auc", "recall_at_10", "recall_at_50", "recall_at_100"}


def result_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Rows for `write_results`, every arm over the seeds that it shares with the block's references."""
    by_block: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        by_block.setdefault((outcome.run.block.log, outcome.run.block.name), []).append(outcome)
    return [row for found in by_block.values() for row in _block_rows(found[0].run.block, found)]


def _block_rows(block: Block, outcomes: list[Outcome]) -> list[dict[str, Any]]:
    cells = {(outcome.run.arm.name, outcome.run.seed): outcome for outcome in outcomes}
    shared = [s for s in sorted({seed for _, seed in cells}) if all((name, s) in cells for name in block.references)]
    if not shared:
        return []
    main = MAIN[block.task]
    means = {name: sum(cells[name, seed].figures[main] for seed in shared) / len(shared) for name in block.references}
    reference = (max if main in RISES else min)(means, key=lambda name: means[name])
    rows = []
    for arm in block.arms:
        seeds = [seed for seed in shared if (arm.name, seed) in cells]
        if not seeds:
            continue
        found = [cells[arm.name, seed] for seed in seeds]
        beside = [cells[reference, seed] for seed in seeds]
        differences = {}
        for name in found[0].figures:
            base = name.removesuffix("_norms")
            difference = paired(
                [o.figures[name] for o in found], [o.figures[base] for o in beside], relative=base in RELATIVE
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
                "unit": f"{'% of' if main in RELATIVE else 'nats against'} {main} of `{reference}`",
                "target": None,
                "spread": differences[main]["ci95"],
                "runs": len(seeds),
                "task": block.task,
                "log": block.log,
                "reference": reference,
                "differences": differences,
                "figures": {name: [round(o.figures[name], 5) for o in found] for name in found[0].figures},
                "meters": {name: round(sum(o.meters[name] for o in found) / len(found), 5) for name in found[0].meters},
                "sizes": {
                    "ranks": block.steps.world_size,
                    "rows_per_step": found[0].rows_per_step,
                    "steps": found[0].num_steps,
                    "users": found[0].run.sizes.num_users,
                    "items": found[0].run.sizes.num_items,
                },
                "seconds": round(sum(o.seconds for o in found) / len(found), 1),
            }
        )
    return rows


def gradient_rows(runs: Sequence[GradientRun], figures: Sequence[Sequence[GradientFigures]]) -> list[dict[str, Any]]:
    """Rows for `write_results`: per block, arm and group of parameters the means over the seeds."""
    found: dict[tuple[str, str, str, str], list[GradientFigures]] = {}
    for run, of_run in zip(runs, figures, strict=True):
        for one in of_run:
            found.setdefault((run.block.log, run.block.name, one.arm, one.group), []).append(one)
    rows = []
    for (log, block, arm, group), ones in found.items():
        ratios, biases = [one.noise_ratio for one in ones], [one.bias for one in ones]
        rows.append(
            {
                "claim": f"{log}: {block}: gradient of the {group}",
                "variant": arm,
                "value": round(sum(ratios) / len(ratios), 3),
                "unit": "x the noise of IID",
                "target": None,
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
                "runs": len(ones),
                "bias": round(sum(biases) / len(biases), 3),
                "bias_spread": [round(min(biases), 3), round(max(biases), 3)],
                "effective_rows": round(sum(one.effective_rows for one in ones) / len(ones)),
                "group": group,
                "log": log,
                "task": block.partition(",")[0],
                "sizes": {"steps": runs[0].sizes.gradient_steps},
            }
        )
    return rows


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
