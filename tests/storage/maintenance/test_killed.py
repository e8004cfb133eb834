"""`kill -9` at every step: the table is whole, old or new; the next run succeeds; the sweep leaves nothing of the dead."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest
from pyiceberg.exceptions import NoSuchTableError

from reqdedup.storage import Layout, TableSource, bucket_join, table_layout, table_schema
from reqdedup.storage.maintenance import sweep_orphans
from reqdedup.storage.measure import checks
from tests.storage.maintenance.killed import NOW, OPERATIONS, child, main_table, open_lake
from tests.storage.maintenance.stored_files import needed_by, on_disk

pytestmark = pytest.mark.slow

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.storage.maintenance.killed"])
STRIDE = {"promote": 4, "convert": 3}
"""Every call has a step before and one after it, so that every second step is another state; of operations of many like
steps every third or fourth is taken. The first and the last ones always are."""
IN_EVERY_RUN = ("append", "compact")
"""The other operations are for `make soak`."""


def run_child(name: str, folder: Path, kill_at: int) -> int:
    process = FORKS.Process(target=child, args=(name, str(folder), kill_at))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def content(folder: Path):
    """What readers see: the main table, None where there is none yet, and the feature beside it."""
    try:
        table = main_table(folder)
    except NoSuchTableError:
        return None
    seen = [checks.content_checksum(TableSource(table)) if table.metadata.snapshots else None]
    try:
        side = open_lake(folder).load_table("test.side")
    except NoSuchTableError:
        return seen
    if side.metadata.snapshots and "count" not in table_schema(table):
        seen.append(checks.content_checksum(bucket_join(table, side)))
    return seen


def check_whole(folder: Path) -> None:
    table = main_table(folder)
    if table.metadata.snapshots and table_layout(table) is Layout.BY_REQUEST:
        for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right):
            assert check(table).ok


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in IN_EVERY_RUN else pytest.mark.soak) for x in OPERATIONS]
)
def test_a_killed_operation_leaves_a_whole_table_and_no_litter(tmp_path, name):
    work, master = tmp_path / "work", tmp_path / "master"
    set_up, run = OPERATIONS[name]
    work.mkdir()
    set_up(work)
    shutil.copytree(work, master)
    before = content(work)
    assert run_child(name, work, -1) == 0
    after = content(work)
    num_steps = int((work / "steps").read_text())
    assert num_steps > 3
    stride = STRIDE.get(name, 2)
    empty = [None] if name == "convert" else before
    for kill_at in sorted({0, *range(1, num_steps, stride), num_steps - 1, num_steps - 2}):
        shutil.rmtree(work)
        shutil.copytree(master, work)
        assert run_child(name, work, kill_at) == -signal.SIGKILL, (kill_at, num_steps)
        seen = content(work)
        assert seen in (before, empty, after), (kill_at, num_steps)
        assert not any((work / "spill").iterdir() if (work / "spill").exists() else ())
        if seen is not None:
            check_whole(work)
        if name not in ("append", "convert") or seen != after:
            run(work)
        assert content(work) == after, (kill_at, num_steps)
        check_whole(work)
        for table in tables_of(work):
            sweep_orphans(table, older_than=NOW, dry_run=False)
            assert on_disk(table) == needed_by(table), (kill_at, num_steps)


def tables_of(folder: Path) -> list:
    lake = open_lake(folder)
    return [lake.load_table(name) for name in lake.list_tables("test")]
