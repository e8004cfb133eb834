"""`kill -9` at any step of a conversion: no table, or the whole one; and the next conversion meets nothing in its way."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from reqdedup.convert import convert_table
from tests.convert.their_log import MAPPING, expected, folder_of, rows_in, their_rows

pytestmark = pytest.mark.slow

CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pyiceberg.catalog import load_catalog
    from pyiceberg.catalog.sql import SqlCatalog
    from reqdedup.convert import convert_table
    from tests.convert.their_log import MAPPING

    directory, step = sys.argv[1:]
    catalog = load_catalog(
        "test", type="sql", uri=f"sqlite:///{directory}/catalog.db", warehouse=f"file://{directory}/lake"
    )

    def die(*arguments, **named):
        os.kill(os.getpid(), signal.SIGKILL)

    def kill(progress):
        if progress.phase == step and (step != "verify" or progress.done):
            die()

    commits, written = SqlCatalog.commit_table, SqlCatalog._write_metadata
    if step == "before the commit":
        SqlCatalog.commit_table = die
    if step == "in the commit":  # the new metadata file is there, the catalog does not know it
        SqlCatalog._write_metadata = staticmethod(lambda **named: (written(**named), die()))
    if step == "after the commit":
        SqlCatalog.commit_table = lambda *arguments: (commits(*arguments), die())
    convert_table(f"{directory}/theirs", catalog, "test.ours", MAPPING, num_buckets=2, progress=kill)
    """
)


@pytest.mark.parametrize("step", ["rows", "before the commit", "in the commit", "after the commit"])
def test_a_killed_conversion_leaves_no_table_or_the_whole_one(catalog, tmp_path, step):
    folder = folder_of(tmp_path, their_rows())
    root = Path(__file__).resolve().parents[2]
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), step], cwd=root, timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL
    if step != "after the commit":
        assert not catalog.namespace_exists("test") or catalog.list_tables("test") == []
        convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=2)
    table = catalog.load_table("test.ours")
    assert len(table.metadata.snapshots) == 1
    assert rows_in(table) == expected(their_rows())
