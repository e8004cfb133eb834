"""Workers and drivers killed at random times: nothing lost, nothing half committed, no file left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from reqdedup.distributed import Processes
from reqdedup.storage import Layout, TableSource, create_table, sweep_orphans, write
from reqdedup.storage.measure.checks import content_checksum
from reqdedup.storage.tasks import shuffle
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tasks.killed_driver import open_lake

pytestmark = pytest.mark.soak

WORKERS_KILLED, DRIVERS_KILLED = 6, 6


@pytest.fixture
def lake(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAP_ROWS", 3_000)
    made = open_lake(tmp_path)
    made.create_namespace("test")
    source = create_table(made, "test.source", log_schema(), Layout.SHUFFLED)
    for seed in range(4):
        write(source, to_batches(make_log(num_users=20, seed=seed, mean_fan_out=150)), mode="append")
    create_table(made, "test.t", log_schema(), Layout.BY_REQUEST, num_buckets=8)
    return made


def test_a_worker_that_is_killed_at_any_time_costs_a_repetition_at_most(lake):
    source, table = TableSource(lake.load_table("test.source")), lake.load_table("test.t")
    wanted, rng, killed = content_checksum(source), random.Random(1), 0
    for _ in range(WORKERS_KILLED):
        engine = Processes(2)
        ended = threading.Event()

        def kill_one(engine=engine, ended=ended) -> None:
            nonlocal killed
            ended.wait(rng.uniform(0.5, 4))
            workers = list(engine._workers)
            if workers and not ended.is_set():
                os.kill(rng.choice(workers).process.pid, signal.SIGKILL)
                killed += 1

        killer = threading.Thread(target=kill_one)
        killer.start()
        write(table, source, engine=engine)
        ended.set()
        killer.join()
        assert content_checksum(TableSource(table.refresh())) == wanted
        assert on_disk(table) == needed_by(table)
    assert killed > 0


def test_a_driver_that_is_killed_at_any_time_leaves_the_table_whole(lake, tmp_path):
    wanted, rng = content_checksum(TableSource(lake.load_table("test.source"))), random.Random(2)
    for _ in range(DRIVERS_KILLED):
        before = lake.load_table("test.t").current_snapshot()
        command = [sys.executable, "-m", "tests.storage.tasks.killed_driver", str(tmp_path)]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        driver.stdout.readline()
        time.sleep(rng.uniform(0, 4))
        driver.kill()
        driver.wait()
        time.sleep(0.5)  # its workers end by themselves
        table = lake.load_table("test.t")
        if table.current_snapshot() != before:
            assert content_checksum(TableSource(table)) == wanted
        sweep_orphans(table, older_than=timedelta(0), dry_run=False)
        assert on_disk(table) == needed_by(table)
