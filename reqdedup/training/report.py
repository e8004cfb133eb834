"""What finished runs say: losses per step, and one table of figures beside what chance gives."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from reqdedup.training.loop import RESULT_NAME

_CHANCE = "_chance"


def read_losses(metrics_file: Path) -> np.ndarray:
    """Mean loss [nats per term] of every step in a run's metrics.csv, [steps] float64."""
    with metrics_file.open(newline="") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)], np.float64)


def training_report(runs: Mapping[str, Path]) -> pa.Table:
    """One row per run and figure: model, figure, value, chance (null where there is none).

    runs: name -> out_dir of `train`.  Raises ValueError where a run has not finished.
    """
    rows = []
    for model, out_dir in runs.items():
        try:
            figures: dict[str, float] = json.loads((out_dir / RESULT_NAME).read_text())
        except FileNotFoundError:
            raise ValueError(f"{out_dir}: {RESULT_NAME} of a finished run required, found none; train first") from None
        for name, value in figures.items():
            if not name.endswith(_CHANCE):
                chance = figures.get(name + _CHANCE)
                rows.append({"model": model, "figure": name, "value": float(value), "chance": chance})
    schema = pa.schema(
        [
            pa.field("model", pa.string(), nullable=False),
            pa.field("figure", pa.string(), nullable=False),
            pa.field("value", pa.float64(), nullable=False),
            pa.field("chance", pa.float64()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)
