"""A run that is killed does not hold up the queue: the daemon of `make ui`, and a real SIGKILL."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from tests.pipelines.running import ROOT, surroundings

WAIT_S = 120


@pytest.mark.soak
def test_a_launched_run_starts_after_one_before_it_was_killed(tmp_path):
    environment = surroundings(tmp_path) | {"REQDEDUP_RECIPE": "smoke"}
    home, programs = environment["DAGSTER_HOME"], Path(sys.executable).parent
    killed = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert any("raw_engagements" in line and "starts" in line for line in killed.stderr)
    killed.kill()
    killed.wait()
    killed.stderr.close()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "daemon.log").open("w"))
        daemon = subprocess.Popen(
            [programs / "dagster-daemon", "run", "-m", "pipelines.definitions"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(daemon.wait, 30)
        stack.callback(os.killpg, daemon.pid, signal.SIGTERM)
        launch = [programs / "dagster", "job", "launch", "-m", "pipelines.definitions", "-j", "storage_only"]
        subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, check=True)
        instance = stack.enter_context(dg.DagsterInstance.from_config(home))
        deadline = time.monotonic() + WAIT_S
        while (runs := {run.job_name: run.status.value for run in instance.get_runs()})["storage_only"] == "QUEUED":
            assert time.monotonic() < deadline, (runs, (tmp_path / "daemon.log").read_text()[-3000:])
            time.sleep(1)
    assert runs["everything"] == "FAILURE"
