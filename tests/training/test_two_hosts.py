"""Training over two hosts, network namespaces joined by a link: the losses of one host, also after a rank was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipelines.ray_cluster import Hosts, why_not
from reqdedup.models import Bundle, DCATConfig
from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint
from reqdedup.training import TrainingConfig, TrainingResult, train
from reqdedup.training.replacing import BUNDLE_NAME, LAUNCH_NAME, RUN_NAME, UNFINISHED_NAME
from tests.training.logs import random_log, with_signal

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"width": 16, "num_layers": 1, "item_table_rows": 512, "category_table_rows": 16, "hidden_widths": (16,)}
PORT, LINKS = 29400, ("br0", "eth0")


def torchrun(hosts: Hosts, number: int, *words: str) -> subprocess.Popen[str]:
    """One host's agent, with one rank."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--node-rank", str(number), "--master-addr", hosts.address(0), "--master-port", str(PORT)),
        *("-m", "reqdedup.training", *words),
    ]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": LINKS[number], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return hosts.start(number, command, cwd=ROOT, env=environment, **pipes)


def training(pids: Iterable[int]) -> list[int]:
    """Of these processes the ranks."""
    found = []
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"reqdedup.training" in words and b"torch.distributed.run" not in words:
            found.append(pid)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    log = with_signal(random_log(num_groups=6, requests_per_group=30, largest_fan_out=8, seed=2))
    return log.write(tmp_path_factory.mktemp("log") / "log.parquet")


@pytest.fixture(scope="module")
def config(source) -> TrainingConfig:
    model = DCATConfig.from_schema(source.schema, **SIZES)
    numbers = {"num_steps": 100, "requests_per_step": 24, "checkpoint_every": 10, "max_epochs": 0, "world_size": 2}
    return TrainingConfig(model=model, learning_rate=0.02, held_out=0.2, collective_timeout_s=20, **numbers)


@pytest.fixture(scope="module")
def wanted(config, source, tmp_path_factory) -> TrainingResult:
    """Of one host, never interrupted."""
    return train(config, source, out_dir=tmp_path_factory.mktemp("one"))


@pytest.fixture
def run(config, source, tmp_path) -> Path:
    said = {"training": config.to_dict(), "paths": source.paths, "out_dir": str(tmp_path)}
    (tmp_path / RUN_NAME).write_text(json.dumps({**said, "schema": json.loads(source.schema.to_json())}))
    return tmp_path / RUN_NAME


def is_wanted(said: str, run: Path, wanted: TrainingResult) -> bool:
    losses = load_checkpoint(run.parent / CHECKPOINT_NAME)["losses"]
    return losses == wanted.losses and json.loads(said[said.rindex("\n{") :]) == wanted.metrics


def test_losses_of_two_hosts_are_those_of_one_bit_for_bit_after_a_rank_was_killed_and_the_run_resumed(run, wanted):
    if reason := why_not():
        pytest.skip(f"hosts are network namespaces here: {reason}")
    with Hosts(2) as hosts:
        agents = [torchrun(hosts, number, str(run)) for number in (0, 1)]
        while not (run.parent / CHECKPOINT_NAME).exists() and all(agent.poll() is None for agent in agents):
            time.sleep(0.01)
        killed = training(hosts.pids(1))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        said = [agent.communicate(timeout=120)[0] for agent in agents]
        assert killed, said
        assert all(agent.returncode for agent in agents), "no rank goes on alone"
        agents = [torchrun(hosts, number, str(run), "--resume") for number in (0, 1)]
        said = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)
    assert is_wanted(said[0], run, wanted)


def test_ranks_that_torchrun_starts_again_go_on_from_the_checkpoint_bit_for_bit(run, wanted):
    finished = wanted.checkpoint.parent  # which the run replaces
    shutil.copytree(finished, run.parent, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RUN_NAME))
    unfinished = run.parent / UNFINISHED_NAME
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "-m", "reqdedup.training", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else ranks read the addresses of those before them
    agent = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own_store}, **pipes)
    while not (unfinished / CHECKPOINT_NAME).exists() and agent.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    killed = training(map(int, children))[:1]
    os.kill(killed[0], signal.SIGKILL)
    said = agent.communicate(timeout=240)[0]
    assert agent.returncode == 0, said
    assert is_wanted(said, run, wanted)
    assert not unfinished.exists()
    assert not (run.parent / LAUNCH_NAME).exists()
    assert Bundle.load(run.parent / BUNDLE_NAME).fingerprint == Bundle.load(finished / BUNDLE_NAME).fingerprint
