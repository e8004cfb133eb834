"""The figures of finished training runs side by side: a leaf that reads what `train` left in its folders."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reqdedup.models.checkpoint import check_format
from reqdedup.training.judgement.judge import UNSEEN, is_less_better

RESULT_NAME = "result.json"
RESULT_FORMAT = 1
"""Version 0.1.0 wrote none, and its files are read."""
CHANCE_SUFFIX = "_chance"
JUDGED = ("mean_log_rank", "auc_", "user_auc_", "request_auc_")
NO_FIGURES = ("format", "snapshot_id", "judgement", "stopped_by", "validations")

_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("chance", pa.float64()),
        pa.field("best_baseline", pa.string()),
        pa.field("baseline", pa.float64()),
        pa.field("gain_low", pa.float64()),
        pa.field("gain_high", pa.float64()),
    ]
)


def read_metrics(metrics_file: Path | str) -> dict[str, np.ndarray]:
    """Every column of a run's metrics.csv, [steps] float64 each.

    Raises ValueError if the file is not there or has no column `loss`.
    """
    try:
        with open(metrics_file, newline="") as file:
            head, *rows = csv.reader(file)
    except FileNotFoundError:
        raise ValueError(f"{metrics_file}: metrics of a training run required, found no file; train first") from None
    except ValueError:
        head, rows = [], []
    if "loss" not in head:
        raise ValueError(f"{metrics_file}: a column `loss` required, found none; train again")
    values = np.array(rows, np.float64).reshape(len(rows), len(head))
    return dict(zip(head, values.T, strict=True))


def read_losses(metrics_file: Path | str) -> np.ndarray:
    """Loss of every step of a run [nats per term], [steps] float64; see `read_metrics`."""
    return read_metrics(metrics_file)["loss"]


def training_report(runs: Mapping[str, Path | str]) -> pa.Table:
    """One row per model and figure: model, metric, value; and where they are known low and high of its interval, what
    chance gives, the best baseline with its figure, and the interval of how much better the model is than it.

    runs: model name -> out_dir of its finished run. Raises ValueError for a folder without a finished run.
    """
    rows: list[dict[str, object]] = []
    for model, out_dir in runs.items():
        figures = _figures(Path(out_dir))
        judgement = figures.get("judgement") or {"figures": []}
        judged = {row["metric"]: row for row in judgement["figures"] if row["slice"] == "all"}
        for metric, value in figures.items():
            if metric not in NO_FIGURES and not metric.endswith(CHANCE_SUFFIX):
                more = judged.get(metric, {})
                row = {name: more.get(name) for name in _SCHEMA.names}
                chance, best = figures.get(metric + CHANCE_SUFFIX), row["best_baseline"]
                row |= {"model": model, "metric": metric, "value": float(value), "chance": chance}
                rows.append(row | {"baseline": more["baselines"][best] if best else None})
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def no_better(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a training report says against its models: figures that are not clearly better than chance or the best
    baseline, which is at the low end of the interval too; without an interval the figure itself counts.

    rows: of a training report. Mean log-rank (less is better) and AUC, over all rows and within users and requests,
    are judged; recall at few items is too noisy. A figure that is not known, as an AUC of one class, is not judged.
    """
    return [said for row in rows if _is_known(row, JUDGED) for said in _against(row, ("chance", "baseline"))]


def poor_probabilities(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Log losses that are not clearly better than that of the rate of each label alone, said as `no_better` does: their
    ratio, the normalised entropy, whose interval has both of the same users, is to be below 1."""
    return [said for row in rows if _is_known(row, ("normalised_entropy_",)) for said in _against(row, ("chance",))]


def _against(row: Mapping[str, Any], rivals: Collection[str]) -> Iterator[str]:
    """What a figure is not clearly better than. rivals: of `chance` and `baseline`, the row's names of them."""
    metric, value, sign = row["metric"], row["value"], -1 if is_less_better(row["metric"]) else 1
    worst, chance = row["low"] if sign > 0 else row["high"], row["chance"]
    over_chance = None if chance is None or worst is None else sign * (worst - chance)
    of_model = f"{row['model']}: " if "model" in row else ""
    gains = {"chance": ("chance", over_chance), "baseline": (row["best_baseline"], row["gain_low"])}
    for kind in rivals:
        (name, gain_low), rival = gains[kind], row[kind]
        if rival is None or math.isnan(rival):
            continue
        gain, said = sign * (value - rival), f"{of_model}{metric} {value:.4g}, {name} {rival:.4g}"
        if gain <= 0:
            yield said
        elif gain_low is not None and gain_low <= 0:
            yield f"{said} (better by {gain:.2g}, which may be chance: 95% interval from {gain_low:.2g})"


def verdict(judgement: Mapping[str, Any]) -> str:
    """One sentence on a judgement: what `no_better` says against the model, or that it is clearly better; and what
    `poor_probabilities` says, which matters where more than the order of items is used."""
    rows = overall(judgement)
    judged = [row for row in rows if _is_known(row, JUDGED)]
    if not judged:
        return "no verdict: none of its main figures is known, as of labels of one class"
    poor = "; ".join(poor_probabilities(rows))
    probabilities = f". Probabilities NOT clearly better than the rate of the label alone: {poor}" if poor else ""
    if worse := no_better(rows):
        return f"NOT clearly better than chance or the best simple rule: {'; '.join(worse)}{probabilities}"
    beside = "chance and the best simple rule" if any(row["best_baseline"] for row in judged) else "chance"
    return f"clearly better than {beside}: {', '.join(row['metric'] for row in judged)}{probabilities}"


def overall(judgement: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures over all rows, each with the best baseline's as `baseline`; a value that is not known is NaN."""
    return [
        {
            **row,
            "value": math.nan if row["value"] is None else row["value"],
            "baseline": row["baselines"].get(row["best_baseline"]),
        }
        for row in judgement["figures"]
        if row["slice"] == "all"
    ]


def _is_known(row: Mapping[str, Any], metrics: tuple[str, ...]) -> bool:
    metric = row["metric"]
    return metric.startswith(metrics) and not metric.endswith(UNSEEN) and not math.isnan(row["value"])


def trained_on(out_dir: Path | str) -> int | None:
    """Snapshot of the table that a finished run was trained on; None if it was none, or an earlier version's run.

    Raises ValueError for a folder without a finished run.
    """
    return _figures(Path(out_dir)).get("snapshot_id")


def _figures(out_dir: Path) -> dict[str, Any]:
    path = out_dir / RESULT_NAME
    if not path.exists():
        raise ValueError(f"{path}: result of a finished training run required, found no file; train the model first")
    figures: dict[str, Any] = json.loads(path.read_text())
    check_format(str(path), figures, RESULT_FORMAT)
    return figures
