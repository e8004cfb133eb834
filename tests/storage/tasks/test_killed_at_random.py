"""Workers and drivers killed at random times, errors and full disks at random places: nothing lost, nothing half
committed, no file left."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from reqdedup.distributed import Inline, Processes
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    create_feature_table,
    create_table,
    sweep_orphans,
    write,
)
from reqdedup.storage.measure.checks import content_checksum
from reqdedup.storage.tasks import parts
from reqdedup.storage.write.writer import WriteProgress
from tests.storage.feature_tables import COUNT, main_table
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tasks.failing import FailsAt
from tests.storage.tasks.killed_driver import drivers, open_lake
from tests.storage.tasks.small_disks import resize, small_disk

pytestmark = pytest.mark.soak

TIMES = 30
"""Of each fault."""

ENGINES = {"inline": Inline, "processes:2": lambda: Processes(2)}


@pytest.fixture
def lake(tmp_path, monkeypatch):
    """A small log in six files: what is killed are tasks of milliseconds, and many of them."""
    monkeypatch.setattr(parts, "MAP_ROWS", 1)
    made = open_lake(tmp_path)
    made.create_namespace("test")
    source = create_table(made, "test.source", log_schema(), Layout.SHUFFLED)
    for seed in range(6):
        write(source, to_batches(make_log(num_users=5, seed=seed, mean_fan_out=50)), mode="append")
    create_table(made, "test.t", log_schema(), Layout.BY_REQUEST, num_buckets=8)
    return made


def test_a_worker_that_is_killed_at_any_time_costs_a_repetition_at_most(lake):
    source, table, engine = TableSource(lake.load_table("test.source")), lake.load_table("test.t"), Processes(2)
    wanted, rng = content_checksum(source), random.Random(1)

    def write_it(at: float = math.inf) -> float:
        """Write, with a worker killed that is at a task `at` seconds after the beginning, or the first one later;
        seconds until all tasks had ended."""
        ended, seconds = threading.Event(), list[float]()

        def kill_one() -> None:
            ended.wait(min(at, threading.TIMEOUT_MAX))
            while not ended.wait(0.0002):
                if busy := [worker for worker in list(engine._workers) if worker.attempt is not None]:
                    os.kill(rng.choice(busy).process.pid, signal.SIGKILL)
                    return

        def tell(now: WriteProgress) -> None:
            if now.phase == "commit":
                seconds.append(now.seconds)

        killer = threading.Thread(target=kill_one)
        killer.start()
        try:
            write(table, source, engine=engine, progress=tell)
        finally:
            ended.set()
            killer.join()
        return seconds[0]

    write_it()  # its processes are there from now on
    undisturbed = write_it()
    for _ in range(2 * TIMES):  # a machine that others use may be faster than it was
        if engine.retries == TIMES:
            break
        undisturbed = min(undisturbed, write_it(rng.uniform(0, undisturbed)))
        assert content_checksum(TableSource(table.refresh())) == wanted
    assert engine.retries == TIMES, "each of a worker that was killed at a task"
    assert on_disk(table) == needed_by(table)
    engine.close()


@pytest.mark.parametrize("engine", ["inline", "processes:1"])
def test_a_driver_that_is_killed_at_any_time_leaves_the_table_whole_and_a_sweep_the_rest(lake, tmp_path, engine):
    wanted, rng, num_ended = content_checksum(TableSource(lake.load_table("test.source"))), random.Random(2), 0
    with drivers(tmp_path, engine) as forked:
        started = time.monotonic()
        forked.begin()
        assert forked.wait()
        undisturbed = time.monotonic() - started
        for _ in range(TIMES):
            before = lake.load_table("test.t").current_snapshot()
            pid, at = forked.begin(), rng.uniform(0, undisturbed)
            time.sleep(at)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if has_ended := forked.wait():
                num_ended, undisturbed = num_ended + 1, at
            table = lake.load_table("test.t")
            assert table.current_snapshot() != before or not has_ended
            assert content_checksum(TableSource(table)) == wanted
    assert num_ended < TIMES // 2
    assert on_disk(table) > needed_by(table)
    sweep_orphans(table, older_than=timedelta(0), dry_run=False)
    assert on_disk(table) == needed_by(table)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_in_any_bucket_ends_the_write_by_name_and_leaves_nothing(tmp_path, engine):
    catalog = open_lake(tmp_path)
    catalog.create_namespace_if_not_exists("lake")
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [COUNT])
    add_request_feature(main, side, FailsAt(-1), columns=[COUNT])
    before, rng, runner = side.refresh().current_snapshot(), random.Random(3), ENGINES[engine]()
    for _ in range(TIMES):
        bucket = rng.randrange(4)
        with pytest.raises(ValueError, match="of this one none can be said") as raised:
            add_request_feature(main, side, FailsAt(bucket), columns=[COUNT], engine=runner)
        assert any(f"in bucket {bucket}" in note for note in raised.value.__notes__)
        assert side.refresh().current_snapshot() == before
    assert on_disk(side) == needed_by(side)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """Where the table's files go."""
    with small_disk(tmp_path / "small") as folder:
        yield folder


@pytest.mark.parametrize("engine", ENGINES)
def test_a_disk_that_is_full_at_any_point_leaves_the_table_as_it_was(lake, disk, engine):
    lake.drop_table("test.t")
    form = {"layout": Layout.BY_REQUEST, "num_buckets": 8, "location": f"file://{disk}"}
    table = create_table(lake, "test.t", log_schema(), **form)
    source, rng, runner, full = TableSource(lake.load_table("test.source")), random.Random(4), ENGINES[engine](), 0
    wanted = content_checksum(source)
    write(table, source, engine=runner)
    of_one_write = shutil.disk_usage(disk).used
    for _ in range(TIMES):
        before = table.refresh().current_snapshot()
        resize(disk, str(shutil.disk_usage(disk).used + int(rng.uniform(0, 1.5) * of_one_write)))
        try:
            write(table, source, engine=runner)
            is_full = False
        except OSError as error:
            is_full = error.errno == errno.ENOSPC
        full += is_full
        resize(disk)
        assert (table.refresh().current_snapshot() == before) == is_full
        assert content_checksum(TableSource(table)) == wanted
    left = on_disk(table) - needed_by(table)
    assert all(path.endswith(".metadata.json") for path in left), "what the catalog itself could not write"
    sweep_orphans(table, older_than=timedelta(0), dry_run=False)
    assert on_disk(table) == needed_by(table)
    assert full > TIMES // 4
