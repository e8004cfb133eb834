"""The examples of models, each of about 30 lines, as programs that a reader starts in an empty folder."""

from __future__ import annotations

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


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_trains_its_model_and_says_what_came_out(script, folder, monkeypatch, capsys):
    assert len(script.read_text().splitlines()) <= 40
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(script), "3"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out
    assert f"python examples/models/{script.name}" in script.read_text()
    assert f"examples/models/{script.name}" in (FOLDER.parents[1] / "docs" / "models.md").read_text()
