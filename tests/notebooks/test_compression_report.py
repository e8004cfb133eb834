"""The notebook runs as a reader would run it, on a small warehouse, and its figures are those of the report."""

from __future__ import annotations

import base64
import runpy
import sys

import pyarrow.compute as pc
import pytest

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import compression_report
from tests.notebooks.running import NOTEBOOKS, outputs, run_notebook
from warehouse import embedded_catalog, load_table, open_catalog, replace_engagement_table, write_report_table

pytestmark = pytest.mark.slow

COMPARED = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")


@pytest.fixture(scope="module")
def small_warehouse(tmp_path_factory):
    """A warehouse as the graph leaves it: the compared tables and the report."""
    data_dir = tmp_path_factory.mktemp("warehouse")
    catalog = open_catalog(embedded_catalog(data_dir))
    config = SyntheticLogConfig(
        seed=3, num_users=40, num_items=2_000, mean_fan_out=20, max_fan_out=64, max_history=256, history_scale=0.05
    )
    schema = synthetic_schema(config)
    batches = list(synthesize(config))
    tables = {}
    for name in COMPARED:
        replace_engagement_table(catalog, "tiny", name, schema, batches, num_buckets=2)
        tables[name] = load_table(catalog, "tiny", name)
    report = compression_report(tables)
    write_report_table(catalog, "tiny", "compression_report", report)
    return data_dir, report


def test_the_notebook_shows_layouts_columns_and_limit(small_warehouse):
    data_dir, report = small_warehouse
    notebook = run_notebook(NOTEBOOKS / "compression_report.py", data_dir=str(data_dir))

    pictures = outputs(notebook, "image/png")
    assert len(pictures) == 3
    assert all(len(base64.b64decode(picture)) > 4_000 for picture in pictures)

    rows, requests = report.column("rows")[0].as_py(), report.column("requests")[0].as_py()
    assert f"namespace tiny: {rows:,} rows, {requests:,} requests" in "".join(outputs(notebook, "stream"))

    figures = outputs(notebook, "text/plain")[-1].replace("┆", " ")
    (line,) = [line.split() for line in figures.splitlines() if " history_item_id " in line]
    rows = report.filter(pc.equal(report["column"], "history_item_id")).to_pylist()
    by_request = next(row for row in rows if row["table"] == "engagements_by_request")
    assert f"{by_request['ratio_to_control']:.1f}x" in line
    assert f"{by_request['fraction_of_limit']:.0%}" in line
    assert all(name.removeprefix("engagements_") in figures for name in COMPARED)


def test_without_the_graph_the_notebook_says_what_to_run(tmp_path, monkeypatch):
    """As a plain script: a kernel of its own would take four seconds more."""
    monkeypatch.setenv("REQDEDUP_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(NOTEBOOKS)
    with pytest.raises(ValueError, match="make run"):
        runpy.run_path(str(NOTEBOOKS / "compression_report.py"))
