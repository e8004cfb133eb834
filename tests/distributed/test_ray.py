"""Ray runs the tasks of every other engine to the same bits, repeats what fails, and is not reached from outside."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.ray_cluster import Cluster, Hosts
from reqdedup.distributed.engine import named_engine
from reqdedup.storage import Layout, TableSource, compact, create_table, write
from tests.distributed.clusters import ROOT, ray_cluster
from tests.distributed.listeners import listening_by, processes_of
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import files_of
from tests.storage.tasks.secret_lake import SECRETS, open_lake

LOG = make_log(num_users=40, seed=11, mean_fan_out=50)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ray_cluster() as made:
        yield made


def contents(table) -> dict[str, bytes]:
    return {Path(path).parent.name: Path(path).read_bytes() for path in files_of(table.refresh())}


@pytest.mark.slow
def test_a_cluster_of_two_hosts_writes_the_same_bits_repeats_faults_and_is_not_reached_from_outside(cluster, tmp_path):
    lake = open_lake(tmp_path)
    source = create_table(lake, "lake.source", log_schema(), Layout.SHUFFLED)
    for start in range(0, len(LOG), 20):
        write(source, to_batches(LOG[start : start + 20]), mode="append")
    once, shared = (
        create_table(lake, f"lake.{name}", log_schema(), Layout.BY_REQUEST, num_buckets=4)
        for name in ("once", "shared")
    )
    command = [sys.executable, "-m", "tests.distributed.ray_driver", str(tmp_path)]
    driver = cluster.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    write(once, TableSource(source))
    compact(once, force=True)
    said, errors = driver.communicate(timeout=150)
    assert driver.returncode == 0, errors
    found = json.loads(said.splitlines()[-1])

    assert found["nodes"] == [Hosts.address(0), Hosts.address(1)]
    assert found["results"] == [[number, number**2] for number in range(5)]
    assert found["retries"] == 3, "one for each fault"
    value, memory = found["value"], found["memory"]
    assert (value["type"], value["text"], value["attempts"]) == ("ValueError", "a whole number required, found none", 1)
    assert "in square 3, attempt 1" in value["notes"][0]
    assert (memory["type"], memory["attempts"]) == ("MemoryError", 2)
    assert "more buckets" in memory["notes"][0]

    assert contents(shared) == contents(once)
    assert on_disk(shared) == needed_by(shared.refresh())
    assert found["totals"]["engine"] == found["engine"] == cluster.engine
    assert (found["totals"]["tasks"], found["totals"]["retries"]) == (len(LOG) // 20 + 1 + 4 + 4, 0)
    assert found["totals"]["bytes_moved"] > sum(len(one) for one in contents(shared).values())

    ours = processes_of(str(cluster.folder))
    assert len(ours) > 4
    assert not listening_by(ours), "outside of its namespaces"
    texts = [path.read_bytes() for path in cluster.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert texts
    assert not [secret for secret in {*SECRETS.values(), "PASSWORD"} if any(secret.encode() in one for one in texts)]


@pytest.mark.parametrize("wrong", ["ray:", "ray://10.0.0.1:10001", "ray:host", "ray:host:port", "ray:a b:1"])
def test_other_addresses_of_a_cluster_are_refused(wrong):
    with pytest.raises(ValueError, match=r"ray or ray:HOST:PORT required, found 'ray:"):
        named_engine(wrong)


@pytest.mark.slow
def test_without_a_cluster_the_engine_says_how_to_start_one():
    program = "from reqdedup.distributed.ray import Ray; list(Ray().run(None, []))"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": "/nonexistent",
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 1
    assert "engine ray: a running cluster with a node on this host required" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"ray:127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ValueError, match=rf"engine {nobody}: a running cluster .* required, found .*refused"):
        list(named_engine(nobody).run(None, []))
