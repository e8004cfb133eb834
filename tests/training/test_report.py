"""The report over runs says what the runs left, and asks for a run where there is none."""

import json

import numpy as np
import pytest

from reqdedup.training import read_losses, training_report


def test_report_has_one_row_per_figure_with_its_chance_and_the_best_baseline(tmp_path):
    judged = {
        **{"metric": "auc_click", "slice": "all", "low": 0.68, "high": 0.72, "gain_low": -0.01, "gain_high": 0.03},
        **{"best_baseline": "item mean", "baselines": {"item mean": 0.69, "other": 0.6}},
    }
    figures = {"format": 1, "snapshot_id": 7, "steps": 3, "auc_click": 0.7, "auc_click_chance": 0.5}
    (tmp_path / "result.json").write_text(json.dumps({**figures, "judgement": {"figures": [judged]}}))
    steps, auc = training_report({"ranking_model": tmp_path}).to_pylist()
    assert (steps["metric"], steps["value"], steps["chance"], steps["best_baseline"]) == ("steps", 3.0, None, None)
    assert (auc["value"], auc["low"], auc["high"], auc["chance"]) == (0.7, 0.68, 0.72, 0.5)
    assert (auc["best_baseline"], auc["baseline"], auc["gain_low"], auc["gain_high"]) == (
        "item mean",
        0.69,
        -0.01,
        0.03,
    )


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
