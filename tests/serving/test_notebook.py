"""The serving notebook runs on what the graph leaves, and shows a kept context beside a computed one."""

from __future__ import annotations

import base64

import pytest

from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.bundles.places import publish
from reqdedup.storage import TableSource
from tests.notebooks.running import NOTEBOOKS, outputs, run_notebook
from warehouse import embedded_catalog, open_catalog, replace_engagement_table

pytestmark = pytest.mark.slow


def test_the_notebook_compares_kept_with_computed_contexts(trained_bundles, tmp_path):
    main = TableSource(trained_bundles.main)
    catalog = open_catalog(embedded_catalog(tmp_path))
    replace_engagement_table(catalog, "small", "engagements_by_request", main.schema, main.batches(), num_buckets=2)
    publish(tmp_path / "serving" / "small" / "bundle", [trained_bundles.ranking, trained_bundles.retrieval])
    (tmp_path / "stores").mkdir()
    store = SqliteStore(tmp_path / "stores" / "small.sqlite", event_columns(main.schema))
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    store.close()
    notebook = run_notebook(
        NOTEBOOKS / "serving_report.py", data_dir=str(tmp_path), num_users=5, num_candidates=(1, 20)
    )
    printed = "".join(outputs(notebook, "stream"))
    assert "namespace small" in printed
    assert "5 of 60 users are asked for" in printed
    assert "every answer equal to the last bit" in printed
    assert "a kept context: " in printed
    (picture,) = outputs(notebook, "image/png")
    assert len(base64.b64decode(picture)) > 4_000
    figures = outputs(notebook, "text/plain")[-1].replace("┆", " ")
    (line,) = [line.split() for line in figures.splitlines() if line.split()[1:2] == ["20"]]
    computed, kept, times = (float(cell) for cell in line[2:5])
    assert times == pytest.approx(computed / kept, rel=0.05)
