"""The notebook of the curve runs as a reader would run it, and its figures are those of the report."""

from __future__ import annotations

import base64

import pytest

from reqdedup.rerank import SlateConfig
from reqdedup.rerank.config import Volume
from reqdedup.rerank.scored import ScoredCandidates, curve_table
from reqdedup.rerank.sweep import sweep, weight_grid
from tests.notebooks.running import NOTEBOOKS, outputs, run_notebook
from tests.rerank.candidates import scored
from warehouse import embedded_catalog, open_catalog, write_report_table

pytestmark = pytest.mark.slow


def test_the_notebook_draws_the_curve_and_shows_a_slate(tmp_path):
    catalog, rows = open_catalog(embedded_catalog(tmp_path)), scored((12, 3, 20))
    candidates = ScoredCandidates.of(rows)
    config = SlateConfig(length=10, window=5, standardise=True, terms=(Volume(weight=1.0),))
    points = sweep(weight_grid(config, "volume", [0.0, 1.0, 4.0]), **candidates.arguments(), measured=["topic"])
    write_report_table(catalog, "small", "scored_candidates", rows)
    write_report_table(catalog, "small", "rerank_report", curve_table(points))
    notebook = run_notebook(NOTEBOOKS / "rerank_report.py", data_dir=str(tmp_path))
    (picture,) = outputs(notebook, "image/png")
    assert len(base64.b64decode(picture)) > 4_000
    assert "namespace small: 3 requests of held-out users" in "".join(outputs(notebook, "stream"))
    curve, slate = (text.replace("┆", " ") for text in outputs(notebook, "text/plain")[-2:])
    (line,) = [line for line in curve.splitlines() if "volume 4" in line]
    assert f"{points[-1].figures['mean_distance']:.3f}" in line
    assert "utility" in slate
