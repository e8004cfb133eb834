"""The library inside somebody else's Dagster project: valid to Dagster, and it does what it says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reqdedup as rd
from tests.pipelines.running import ROOT, surroundings

PROJECT = ROOT / "examples" / "dagster_project"
DEFINITIONS = PROJECT / "src" / "shop" / "definitions.py"


@pytest.fixture(scope="module")
def shop():
    spec = importlib.util.spec_from_file_location("shop_definitions", DEFINITIONS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_of_it_is_40_lines():
    assert len(DEFINITIONS.read_text().splitlines()) <= 42
    assert "import assets" not in DEFINITIONS.read_text()


@pytest.mark.slow
def test_dagster_finds_its_definitions_valid(tmp_path):
    found = subprocess.run(
        [Path(sys.executable).parent / "dg", "check", "defs"],
        cwd=PROJECT,
        env=surroundings(tmp_path) | {"PYTHONPATH": f"{PROJECT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "All definitions loaded successfully" in found.stdout + found.stderr


@pytest.mark.slow
def test_it_makes_and_checks_the_table(shop, tmp_path):
    rows = [
        {"customer": customer, "page_view": 10 * customer + view, "sku": sku, "bought": int(sku == 2),
         "shown_at": datetime(2026, 11, 3, view, customer)}
        for customer in range(9) for view in range(2) for sku in range(5)
    ]  # fmt: skip
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / "a.parquet")
    for _ in range(2):  # made again, it holds the same
        done = dg.materialize(
            [shop.impressions, shop.page_views_are_whole],
            resources={"lake": shop.Lake(folder=str(tmp_path))},
            instance=dg.DagsterInstance.ephemeral(),
        )
        assert all(check.passed for check in done.get_asset_check_evaluations())
    assert len(done.get_asset_check_evaluations()) == 1
    assert rd.open(tmp_path).table(shop.TABLE).iceberg.scan().count() == 90
