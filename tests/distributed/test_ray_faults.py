"""Workers, nodes, links and drivers of a Ray cluster that fail: nothing lost or half committed, and it ends in time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from pyiceberg.table import Table

from pipelines.ray_cluster import Cluster
from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.storage import Layout, TableSource, create_table, sweep_orphans, write
from reqdedup.storage.iceberg.files import EXCHANGE_FOLDER
from reqdedup.storage.measure.checks import content_checksum
from tests.distributed.clusters import ROOT, ray_cluster
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tasks.killed_driver import open_lake
from tests.storage.tasks.small_disks import resize, small_disk

pytestmark = pytest.mark.soak

DEADLINE_S = 40.0
SECONDS = {"REQDEDUP_DEADLINE_S": str(DEADLINE_S)}
"""Of a task: minutes in life."""

EATEN = 2**32
"""Bytes that a task asks for, twice what the machine may give it."""


@pytest.fixture(scope="module")
def cluster(disk) -> Iterator[Cluster]:
    """Three hosts, of which the third is killed and cut off; they see the disk, which is there before them."""
    with ray_cluster(3, cores=1) as made:
        yield made


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """Where the table's files go."""
    with small_disk(tmp_path_factory.mktemp("disks") / "small") as folder:
        yield folder


@pytest.fixture(scope="module")
def lake(tmp_path_factory, disk) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    made = open_lake(folder)
    made.create_namespace("test")
    source = create_table(made, "test.source", log_schema(), Layout.SHUFFLED)
    for seed in range(4):
        write(source, to_batches(make_log(num_users=20, seed=seed, mean_fan_out=150)), mode="append")
    form = {"layout": Layout.BY_REQUEST, "num_buckets": 8, "location": f"file://{disk}"}
    create_table(made, "test.t", log_schema(), **form)
    return folder


@pytest.fixture(scope="module")
def wanted(lake) -> ContentChecksum:
    return content_checksum(TableSource(open_lake(lake).load_table("test.source")))


def begin(cluster: Cluster, folder: Path) -> subprocess.Popen[str]:
    """A driver that writes; it has said that it begins."""
    command = [sys.executable, "-m", "tests.storage.tasks.killed_driver", str(folder), cluster.engine]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = cluster.start(command, cwd=ROOT, env=SECONDS, **pipes)
    assert driver.stdout is not None
    assert driver.stdout.readline().startswith("begins")
    return driver


def workers(cluster: Cluster, *numbers: int) -> list[int]:
    """Processes on these hosts that are at a task."""
    found = []
    for number in numbers:
        for pid in cluster.hosts.pids(number):
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"ray::map", b"ray::bucket")):
                    found.append(pid)
            except OSError:
                continue
    return found


def wait_for_workers(cluster: Cluster, driver: subprocess.Popen[str], *numbers: int) -> list[int]:
    while not (found := workers(cluster, *numbers)) and driver.poll() is None:
        time.sleep(0.02)
    return found


def committed(folder: Path) -> Table:
    return open_lake(folder).load_table("test.t")


def ends_well(driver: subprocess.Popen[str], folder: Path, wanted: ContentChecksum) -> None:
    _, errors = driver.communicate(timeout=DEADLINE_S + 60)
    assert driver.returncode == 0, errors
    assert content_checksum(TableSource(committed(folder))) == wanted


def test_workers_that_are_killed_at_any_time_cost_repetitions(cluster, lake, wanted):
    rng = random.Random(1)
    driver = begin(cluster, lake)
    for _ in range(2):  # fewer than the attempts of a task
        wait_for_workers(cluster, driver, 0, 1, 2)
        time.sleep(rng.uniform(0, 0.5))
        for pid in workers(cluster, 0, 1, 2)[:1]:
            os.kill(pid, signal.SIGKILL)
    ends_well(driver, lake, wanted)
    table = committed(lake)
    assert on_disk(table) == needed_by(table)


def test_a_driver_that_is_killed_leaves_the_table_whole_and_a_sweep_the_rest(cluster, lake, wanted):
    before = committed(lake).current_snapshot()
    driver = begin(cluster, lake)
    wait_for_workers(cluster, driver, 0, 1, 2)
    time.sleep(random.Random(2).uniform(0, 1))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    while workers(cluster, 0, 1, 2):  # the cluster ends the tasks of a driver that is gone
        time.sleep(0.1)
    table = committed(lake)
    if table.current_snapshot() != before:
        assert content_checksum(TableSource(table)) == wanted
    sweep_orphans(table, older_than=timedelta(0), dry_run=False)
    assert on_disk(table) == needed_by(table)


def test_a_disk_that_is_full_on_one_host_costs_repetitions(cluster, lake, disk, wanted):
    place, there = disk / EXCHANGE_FOLDER, str(cluster.hosts.pids(2)[0])
    place.mkdir(exist_ok=True)
    mount = ["nsenter", "-m", "-t", there, "mount", "-t", "tmpfs", "-o", "nr_inodes=1", "tmpfs", place]
    subprocess.run(mount, check=True)
    try:
        driver = begin(cluster, lake)
        assert wait_for_workers(cluster, driver, 2), "the third host is at a task"
        ends_well(driver, lake, wanted)
    finally:
        subprocess.run(["nsenter", "-m", "-t", there, "umount", place], check=True)
    table = committed(lake)
    assert on_disk(table) == needed_by(table)


def test_a_disk_that_is_full_for_all_ends_the_write_and_leaves_nothing(cluster, lake, disk):
    before = committed(lake).current_snapshot()
    resize(disk, str(shutil.disk_usage(disk).used + 2**16))
    try:
        _, errors = (driver := begin(cluster, lake)).communicate(timeout=DEADLINE_S + 60)
    finally:
        resize(disk)
    assert driver.returncode == 1
    assert "No space left on device" in errors
    assert "attempt 3; nothing of it was committed" in errors
    table = committed(lake)
    assert table.current_snapshot() == before
    assert on_disk(table) == needed_by(table)


def test_a_link_that_is_cut_without_a_word_costs_a_repetition(cluster, lake, wanted):
    driver = begin(cluster, lake)
    assert wait_for_workers(cluster, driver, 2), "the third host is at a task"
    cluster.hosts.cut(2)
    ends_well(driver, lake, wanted)
    cluster.hosts.kill(2)
    table = committed(lake)
    sweep_orphans(table, older_than=timedelta(0), dry_run=False)  # of what the host wrote once it was given up
    assert on_disk(table) == needed_by(table)
    cluster.hosts.mend(2)
    cluster.start_node(2)


def test_a_node_that_is_killed_costs_a_repetition(cluster, lake, wanted):
    driver = begin(cluster, lake)
    assert wait_for_workers(cluster, driver, 2), "the third host is at a task"
    cluster.hosts.kill(2)
    ends_well(driver, lake, wanted)
    table = committed(lake)
    assert on_disk(table) == needed_by(table)


def test_a_task_that_the_memory_monitor_kills_runs_once_more_and_then_says_what_would_help(tmp_path):
    memory = psutil.virtual_memory()
    if memory.available < 2 * EATEN:  # the kernel, not Ray, would end what it finds, and not only the test's own
        pytest.skip("8 GiB of free memory required")
    threshold = (memory.total - memory.available + EATEN // 2) / memory.total
    program = "import json, sys; from pathlib import Path; from reqdedup.distributed import engine_for\n" + (
        "from tests.distributed.ray_driver import refused\n"
        "engine, folder = engine_for(None, None, num_tasks=1), Path(sys.argv[1])\n"
        "print(json.dumps([refused(folder / 'marks', engine, 'eat'), engine.retries]))"
    )
    with ray_cluster(1, cores=1, RAY_memory_usage_threshold=f"{threshold:.4f}") as made:
        command = [sys.executable, "-c", program, str(tmp_path)]
        driver = made.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        said, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors
    found, retries = json.loads(said.splitlines()[-1])
    assert (found["type"], retries) == ("MemoryError", 1)
    assert "killed on 10.77.0.1" in found["text"]
    assert "more buckets" in found["notes"][0]


def test_a_cluster_of_several_hosts_without_a_token_is_refused(tmp_path):
    program = "import sys; from pathlib import Path; from reqdedup.distributed import engine_for\n" + (
        "from tests.distributed.work import Square, Squares\n"
        "list(engine_for(None, None, num_tasks=1).run(Squares(Path(sys.argv[1])), [Square(1)]))"
    )
    with ray_cluster(2, token=False) as made:
        command = [sys.executable, "-c", program, str(tmp_path)]
        driver = made.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "token authentication of a cluster of several hosts (10.77.0.2, and this one) required" in errors
    assert not list(tmp_path.iterdir()), "no task ran"
