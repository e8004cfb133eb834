"""The examples of models, each of about 30 lines, as programs that a reader starts in an empty folder."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "models"
SCRIPTS = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem == "two_tower" else pytest.mark.soak)
    for path in sorted(FOLDER.glob("*.py"))
    if path.name != "shop.py"
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.mark.slow
def test_the_log_has_something_to_learn_from_histories_and_items_alone(monkeypatch):
    """Without the duration, which only clicks have."""
    monkeypatch.syspath_prepend(str(FOLDER))
    shop = __import__("shop")
    rows = shop.impressions(num_users=20).to_pylist()
    assert all(row["dwell_s"] == 0 for row in rows if not row["click"])
    assert shop.KNOWN_LATER == ["dwell_s"]

    def auc(score):
        yes, no = ([score(row) for row in rows if row["click"] == click] for click in (1, 0))
        return sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / (len(yes) * len(no))

    def of_history(row):
        history = row["history_item_id"]
        return sum(item % 6 == row["category"] for item in history) / max(1, len(history))

    assert auc(of_history) > 0.6
    assert auc(lambda row: of_history(row) + (row["category"] == row["subject"])) > 0.75


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_trains_its_model_and_says_what_came_out(script, folder, monkeypatch, capsys):
    assert len(script.read_text().splitlines()) <= 40
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(FOLDER))
    steps = "3" if script.stem == "two_tower" else "200"  # the other ones are no part of the fast tests
    monkeypatch.setattr(sys, "argv", [str(script), steps])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(r"^\d+ steps in .* ended by", said, re.M)
    figures = re.findall(r"^(\w+) ([\d.]+), chance ([\d.]+), .* [\d.]+$", said, re.M)
    assert figures
    for name, value, chance in figures if steps == "200" else ():
        assert (float(value) < float(chance)) == name.startswith(("mean_log_rank", "log_loss")), said
    for run in folder.glob("runs/*/run.json"):
        model = json.loads(run.read_text())["training"]["model"]
        assert "dwell_s" not in model.get("item_numbers", ()), run
    assert f"python examples/models/{script.name}" in script.read_text()
    assert f"examples/models/{script.name}" in (FOLDER.parents[1] / "docs" / "models.md").read_text()
