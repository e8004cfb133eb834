"""Models as Dagster metadata: how their training went, and how good they are beside chance and simple rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from assets import pictures
from assets.metadata import CHART, GLANCE, PICTURE
from reqdedup import plots
from reqdedup.models.bundle import fingerprint_of, read_manifest
from reqdedup.training import TrainingConfig, TrainingResult, read_metrics
from reqdedup.training.judgement.judge import UNSEEN, is_less_better
from reqdedup.training.loop import BUNDLE_NAME
from reqdedup.training.report import verdict

BESIDE, CALIBRATION, FALSE_NEGATIVES = "beside the best baseline", "calibration", "false negatives"
HEADLINES = ("mean_log_rank", "recall_at_", "ndcg_at_", "auc_", "user_auc_", "log_loss_")
"""Beginnings of the names of the held-out figures that one screen has room for."""
STEP_PANELS = (
    ("loss", "loss [nats]", 1),
    ("effective_users", "effective users of a step", 1),
    ("false_negative_rate", "false negatives before the mask [%]", 100),
    ("memory_bytes", "memory of rank 0 [MB]", 1e-6),
)
"""Of a chart over a run's steps: column of metrics.csv, title, factor."""


def figures_table(rows: Iterable[Mapping[str, Any]]) -> dict[str, dg.MetadataValue]:
    """Held-out figures beside what guessing would give and the best baseline: as narrow as the page shows it, and once
    more with intervals and the names of the baselines. What is no judgement, steps or memory, is in neither."""

    def text(value: float | None, digits: int = 4) -> str:
        return "-" if value is None else f"{value:.{digits}g}"

    every = [row for row in rows if any(row[name] is not None for name in ("low", "chance", "baseline"))]
    first = [row for row in every if row["metric"].startswith(HEADLINES) and not row["metric"].endswith(UNSEEN)]
    return {
        GLANCE: pictures.table(
            [
                {
                    "figure": row["metric"],
                    "value": text(row["value"], 3),
                    "baseline": text(row["baseline"], 3),
                    "chance": text(row["chance"], 3),
                }
                for row in first or every
            ]
        ),
        "with intervals": pictures.table(
            [
                {
                    "figure": row["metric"],
                    "value": text(row["value"]),
                    "95%": "-" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}",
                    "chance": text(row["chance"]),
                    "best baseline": f"{row['best_baseline']}: {text(row['baseline'])}"
                    if row["best_baseline"]
                    else "-",
                }
                for row in every
            ]
        ),
    }


def beside_baseline(rows: Iterable[Mapping[str, Any]]) -> dg.MarkdownMetadataValue | None:
    """How far the main figures of one model lie from chance on the better side; the line is the best baseline.

    Every bar has a scale of its own: one that ends before its line is of a figure that a simple rule has better.
    rows: as of `figures_table`. None if no figure has both chance and a baseline.
    """
    bars, texts, limits = {}, {}, []
    for row in rows:
        metric, value, chance, baseline = (row[name] for name in ("metric", "value", "chance", "baseline"))
        if not metric.startswith(HEADLINES) or None in (value, chance, baseline) or not np.isfinite(value):
            continue
        sign = -1 if is_less_better(metric) else 1
        ours, theirs = max(sign * (value - chance), 0.0), max(sign * (baseline - chance), 0.0)
        longest = max(ours, theirs) or 1.0
        bars[metric], texts[metric] = ours / longest, f"{value:.3g}, baseline {baseline:.3g}"
        limits.append(theirs / longest)
    return pictures.bars(bars, texts, limits=limits) if bars else None


def _of_steps(metrics: Mapping[str, np.ndarray]) -> dict[str, dg.MetadataValue]:
    """Users of a step beside the false negatives that the mask takes out; nothing if a task has none."""
    share, users = 100 * metrics["false_negative_rate"], metrics["effective_users"]
    if not np.nanmax(share, initial=0.0) > 0:
        return {}
    last = f"{np.nanmean(share):.1f}% at {np.nanmean(users):,.0f} users"
    return {FALSE_NEGATIVES: pictures.line(np.nan_to_num(share), first=f"{share[0]:.1f}%", last=last)}


def training_metadata(config: TrainingConfig, result: TrainingResult) -> dict[str, Any]:
    """What a training run gave, with units."""
    metrics = read_metrics(result.metrics_file)
    held_out = [
        {**row, "baseline": row["baselines"].get(row["best_baseline"])}
        for row in (result.judgement or {"figures": []})["figures"]
        if row["slice"] == "all"
    ]
    figures = figures_table(held_out)
    tenths = (result.judgement or {"calibration": {}})["calibration"]
    calibration = {
        label: ([row["predicted"] for row in rows], [row["observed"] for row in rows]) for label, rows in tenths.items()
    }
    return {
        PICTURE: pictures.line(
            metrics["loss"],
            first=f"loss {result.first_loss:.3g}",
            last=f"{result.last_loss:.3g} at step {result.steps:,}",
        ),
        **({BESIDE: beside} if (beside := beside_baseline(held_out)) else {}),
        GLANCE: figures[GLANCE],
        **_of_steps(metrics),
        **({CALIBRATION: pictures.calibration(calibration)} if calibration else {}),
        **figures,
        CHART: pictures.chart(plots.steps({"": metrics}, STEP_PANELS)),
        **({f"{CHART} of calibration": pictures.chart(plots.calibration(calibration))} if calibration else {}),
        **({"begins_with": begins_with(config)} if config.foundation else {}),
        **({"verdict": verdict(result.judgement)} if result.judgement else {}),
        "fingerprint": fingerprint_of(read_manifest(result.checkpoint.parent / BUNDLE_NAME)),
        "task": config.task,
        "ranks": config.world_size,
        "steps": result.steps,
        "epochs": result.epochs,
        "stopped_by": result.stopped_by,
        "best_step": result.best_step,
        "rows": result.rows,
        "loss_first_tenth": round(result.first_loss, 4),
        "loss_last_tenth": round(result.last_loss, 4),
        "rows_per_s": round(result.rows_per_s),
        "total_s": round(result.total_s, 1),
        "longest_wait_s": round(result.longest_wait_s, 2),
        "mean_wait_s": round(result.mean_wait_s, 2),
        "busiest_core_busy": round(result.busiest_core_busy, 3),
        "mean_core_busy": round(result.mean_core_busy, 3),
        "peak_memory_bytes": result.peak_memory_bytes,
        "checkpoint": str(result.checkpoint),
        **{name: float(value) for name, value in result.metrics.items()},
        **{f"{row['metric']}_baseline": row["baseline"] for row in held_out if row["baseline"] is not None},
    }


def begins_with(config: TrainingConfig) -> str:
    """The foundation model by the name of its asset and its fingerprint, which its own page shows."""
    folder = Path(config.foundation).parent
    return f"{folder.name} {fingerprint_of(read_manifest(folder / BUNDLE_NAME))}"


def judged_metadata(rows: Sequence[Mapping[str, Any]]) -> dict[str, dg.MetadataValue]:
    """A training report: a picture of each model, then the figures of all. rows: of `training.training_report`."""
    drawn = {
        model: beside_baseline([row for row in rows if row["model"] == model])
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    return {**{model: picture for model, picture in drawn.items() if picture is not None}, **figures_table(rows)}
