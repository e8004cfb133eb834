"""The graph as documented, and how a test runs it: a warehouse and a Dagster instance of its own."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from pipelines import run
from reqdedup.storage import TableSource
from reqdedup.storage.measure import checks
from warehouse import embedded_catalog, load_table, open_catalog

ROOT = Path(__file__).resolve().parents[2]


GRAPH = {
    "impressions": set(),
    "raw_engagements": {"impressions", "user_events"},
    "url_rules": {"raw_engagements"},
    "engagements_shuffled": {"raw_engagements"},
    "engagements_sorted": {"raw_engagements"},
    "engagements_by_request": {"raw_engagements"},
    "compression_report": {"engagements_shuffled", "engagements_sorted", "engagements_by_request"},
    "request_features": {"engagements_by_request"},
    "training_sample": {"engagements_by_request", "request_features"},
    "foundation_model": {"training_sample"},
    "retrieval_model": {"training_sample", "foundation_model"},
    "ranking_model": {"training_sample", "foundation_model"},
    "training_report": {"retrieval_model", "ranking_model"},
    "serving_bundle": {"retrieval_model", "ranking_model"},
    "scored_candidates": {"training_sample", "retrieval_model", "ranking_model"},
    "rerank_report": {"scored_candidates"},
    "user_states": {"retrieval_model", "engagements_by_request"},
    "serving_store": {"engagements_by_request", "request_features"},
    "raw_events": set(),
    "user_events": {"raw_events"},
    "sequence_report": {"user_events"},
}


def surroundings(folder: Path) -> dict[str, str]:
    """A warehouse and a Dagster instance of their own under `folder`."""
    home = folder / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text((ROOT / "pipelines" / "dagster.yaml").read_text())
    mine = {name: value for name, value in os.environ.items() if not name.startswith("REQDEDUP_")}
    environment = Path(sys.executable).parent.parent
    return mine | {
        "REQDEDUP_DATA_DIR": str(folder / "data"),
        "DAGSTER_HOME": str(home),
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def command(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=surroundings(folder) | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_graph(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return command(sys.executable, "-m", "pipelines.run", *arguments, folder=folder, **variables)


def run_here(
    *arguments: str, folder: Path, capfd: pytest.CaptureFixture[str], **variables: str
) -> subprocess.CompletedProcess:
    """`run_graph` in this process, which has loaded Dagster already: a new one takes five seconds for that."""
    capfd.readouterr()
    with mock.patch.dict(os.environ, surroundings(folder) | variables, clear=True), contextlib.chdir(ROOT):
        try:
            returncode = run.main(list(arguments))
        except SystemExit as exit:
            returncode = int(exit.code or 0)
    shown = capfd.readouterr()
    return subprocess.CompletedProcess(arguments, returncode, shown.out, shown.err)


def content(folder: Path, namespace: str, table: str) -> checks.ContentChecksum:
    catalog = open_catalog(embedded_catalog(folder / "data"))
    return checks.content_checksum(TableSource(load_table(catalog, namespace, table)))
