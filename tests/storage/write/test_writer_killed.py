"""`kill -9` at any step of a write: the table is whole at its old snapshot, and the next write succeeds."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from reqdedup.storage import Layout, TableSource, write
from reqdedup.storage.measure import checks
from tests.storage.small_log import make_log, to_batches
from tests.storage.tables import new_table

pytestmark = pytest.mark.slow

CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pyiceberg.catalog import load_catalog
    from reqdedup.storage import write
    from tests.storage.small_log import make_log, to_batches

    directory, phase = sys.argv[1:]
    catalog = load_catalog(
        "test", type="sql", uri=f"sqlite:///{directory}/catalog.db", warehouse=f"file://{directory}/lake"
    )

    def kill(progress):
        if progress.phase == phase:
            os.kill(os.getpid(), signal.SIGKILL)

    write(catalog.load_table("test.by_request"), to_batches(make_log(seed=1)), progress=kill, spill_dir=directory)
    """
)


@pytest.mark.parametrize("phase", ["spill", "write", "commit"])
def test_a_killed_write_changes_nothing(catalog, tmp_path, phase):
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log(seed=0)))
    before = checks.content_checksum(TableSource(table))
    root = Path(__file__).resolve().parents[3]
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), phase], cwd=root, timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL

    table = catalog.load_table(table.name())
    assert len(table.snapshots()) == 1
    assert checks.content_checksum(TableSource(table)) == before
    assert not list(tmp_path.glob("reqdedup-spill-*"))
    write(table, to_batches(make_log(seed=1)))
    assert checks.requests_whole(table).ok
    assert checks.content_checksum(TableSource(table)) != before
