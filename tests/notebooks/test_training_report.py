"""The training notebook plots every run's steps and shows its held-out figures."""

from __future__ import annotations

import base64
import json

import pytest

from reqdedup.training.metrics_file import METRIC_COLUMNS
from tests.notebooks.running import NOTEBOOKS, outputs, run_notebook

pytestmark = pytest.mark.slow


@pytest.fixture
def run_folder(tmp_path):
    steps = [dict.fromkeys(METRIC_COLUMNS, step) | {"loss": 1 / step} for step in range(1, 41)]
    lines = [",".join(METRIC_COLUMNS), *(",".join(str(value) for value in step.values()) for step in steps)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "result.json").write_text(json.dumps({"auc_click": 0.617, "auc_click_chance": 0.5, "steps": 40}))
    return tmp_path


def test_the_notebook_plots_the_steps_and_shows_the_figures(run_folder):
    notebook = run_notebook(NOTEBOOKS / "training_report.py", runs={"my_model": str(run_folder)})
    pictures = outputs(notebook, "image/png")
    assert len(pictures) == 3
    assert all(len(base64.b64decode(picture)) > 4_000 for picture in pictures)
    assert f"my_model: 40 steps, {sum(range(1, 41)):,} rows in 40.0 s" in "".join(outputs(notebook, "stream"))
    assert "+0 MB over the second half" in "".join(outputs(notebook, "stream"))  # 20 bytes: not every rise is one
    figures = outputs(notebook, "text/plain")[-1].replace("┆", " ")
    (line,) = [line.split() for line in figures.splitlines() if "auc_click" in line]
    assert line[1:-1] == ["my_model", "auc_click", "0.617", "0.5"]
