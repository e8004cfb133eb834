"""The report over runs says what the runs left, and asks for a run where there is none."""

import json

import numpy as np
import pytest

from reqdedup.training import read_losses, training_report


def test_report_has_one_row_per_figure_with_its_chance(tmp_path):
    (tmp_path / "result.json").write_text(
        json.dumps({"format": 1, "snapshot_id": 7, "steps": 3, "auc_click": 0.7, "auc_click_chance": 0.5})
    )
    rows = training_report({"ranking_model": tmp_path}).to_pylist()
    assert rows == [
        {"model": "ranking_model", "metric": "steps", "value": 3.0, "chance": None},
        {"model": "ranking_model", "metric": "auc_click", "value": 0.7, "chance": 0.5},
    ]


def test_report_without_a_finished_run_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"result\.json.*train the model first"):
        training_report({"ranking_model": tmp_path})


def test_losses_come_from_the_metrics_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,rows\n1,0.5,10\n2,0.25,10\n")
    np.testing.assert_array_equal(read_losses(tmp_path / "metrics.csv"), [0.5, 0.25])
    with pytest.raises(ValueError, match="train first"):
        read_losses(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("step\n1\n")
    with pytest.raises(ValueError, match="loss"):
        read_losses(tmp_path / "other.csv")
