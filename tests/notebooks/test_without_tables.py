"""The notebooks that make what they need themselves; what they compare with a plain definition they assert themselves."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.notebooks.running import NOTEBOOKS

SAID = {
    "audit_your_table": "equal value by value",
    "batch_to_dcat": "largest difference of a logit",
    "bucket_join": "each with the count of its own request",
    "iid_disruption": "of the negatives are the user's own",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_a_notebook_that_needs_no_tables_runs_to_its_end(name, monkeypatch, capsys):
    """As the plain script that it is: a kernel of its own would take four seconds more."""
    monkeypatch.chdir(NOTEBOOKS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(NOTEBOOKS / f"{name}.py"))
    assert SAID[name] in capsys.readouterr().out
