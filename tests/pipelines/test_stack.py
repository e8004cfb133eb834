"""Dagster's services of docker-compose.yml, by its own commands, without containers: PostgreSQL, S3, queue and daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psycopg2
import pytest
import yaml

from reqdedup.environment import LakePlace, catalog_properties
from tests.pipelines import asking
from tests.pipelines.asking import LAUNCH, LOCATION, STATUS
from tests.pipelines.running import ROOT, surroundings
from tests.servers.postgres import start_postgres
from tests.servers.process import LOOPBACK, Server, free_ports
from tests.servers.seaweedfs import BUCKET, start_seaweedfs
from warehouse import load_table, open_catalog

SERVICES = ("dagster-code", "dagster-daily", "dagster", "dagster-daemon")
UP_S, RUN_S = 120.0, 400.0


class Stack:
    """The four services; `variables` are those of the file, with the servers and ports of this test in their place."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder, self.variables = folder, variables
        self.services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.ports = dict(zip(SERVICES[:3], free_ports(3)))
        self.running: dict[str, Server] = {}
        (folder / "home").mkdir()
        shutil.copy(ROOT / "deploy" / "dagster" / "dagster.yaml", folder / "home")

    def environment(self) -> dict[str, str]:
        mine = self.services["dagster-code"]["environment"]
        places = {
            "DAGSTER_HOME": str(self.folder / "home"),
            "DAGSTER_FILES": str(self.folder / "files"),
            "DAGSTER_CODE_HOST": LOOPBACK,
            "DAGSTER_DAILY_HOST": LOOPBACK,
            "DAGSTER_CODE_PORT": str(self.ports["dagster-code"]),
            "DAGSTER_DAILY_PORT": str(self.ports["dagster-daily"]),
            "REQDEDUP_RECIPE": "smoke",
            **self.variables,
        }
        assert set(places) == set(mine), "another variable in docker-compose.yml: say what it is here"
        return surroundings(self.folder) | places | {"PYTHONPATH": str(ROOT)}

    def start(self, name: str) -> None:
        port = self.ports.get(name)
        words = [str(word) for word in self.services[name]["command"]]
        words = [LOOPBACK if word == "0.0.0.0" else str(port) if word in ("3000", "4000") else word for word in words]
        words = [str(ROOT / word) if word.endswith(".yaml") else word for word in words]
        program = str(Path(sys.executable).parent / words[0])
        (self.folder / name).mkdir(exist_ok=True)
        self.running[name] = Server(
            name, [program, *words[1:]], folder=self.folder / name, environment=self.environment(), stop_timeout_s=30
        )

    def stop(self, name: str) -> None:
        self.running.pop(name).stop()

    def up(self) -> None:
        """In the order of `depends_on`: the web server makes the tables, the daemon comes after it."""
        for name in SERVICES:
            if name not in self.running:
                self.start(name)
            if name == "dagster":
                self.running[name].wait_until(
                    lambda: len(self.ask(LOCATION)["repositoriesOrError"]["nodes"]) == 2, timeout_s=UP_S
                )

    def ask(self, query: str, **variables: object) -> dict:
        return asking.ask(f"http://{LOOPBACK}:{self.ports['dagster']}", query, **variables)

    def launch(self, job: str, **config: object) -> str:
        selector = {
            "repositoryLocationName": "reqdedup",
            "repositoryName": "__repository__",
            "pipelineName": job,
        }
        params = {
            "selector": selector,
            "mode": "default",
            "runConfigData": {"resources": {"run_recipe": {"config": config}}},
        }
        done = self.ask(LAUNCH, params=params)["launchRun"]
        assert done["__typename"] == "LaunchRunSuccess", done
        return done["run"]["runId"]

    def until(self, run_id: str, *statuses: str) -> str:
        deadline = time.monotonic() + RUN_S
        while (status := self.ask(STATUS, id=run_id)["runOrError"]["status"]) not in statuses:
            assert time.monotonic() < deadline, (status, self.running["dagster-daemon"].log_tail())
            assert status != "FAILURE", self.running["dagster-code"].log_tail(60)
            time.sleep(0.5)
        return status


@pytest.fixture
def stack():
    folder = Path(tempfile.mkdtemp(prefix="reqdedup-stack-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres, seaweedfs = start_postgres(folder), start_seaweedfs(folder)
        ends.callback(postgres.server.stop)
        ends.callback(seaweedfs.server.stop)
        connection = psycopg2.connect(postgres.uri().replace("+psycopg2", ""))
        connection.autocommit = True
        connection.cursor().execute((ROOT / "deploy" / "postgres" / "dagster.sql").read_text())
        connection.close()
        prefix = "REQDEDUP_CATALOG__"
        stack = Stack(
            folder,
            {
                f"{prefix}TYPE": "sql",
                f"{prefix}URI": postgres.uri(),
                f"{prefix}WAREHOUSE": f"s3://{BUCKET}/tables",
                f"{prefix}S3__ENDPOINT": seaweedfs.s3_endpoint,
                f"{prefix}S3__ACCESS_KEY_ID": seaweedfs.access_key,
                f"{prefix}S3__SECRET_ACCESS_KEY": seaweedfs.secret_key,
                f"{prefix}S3__REGION": "us-east-1",
                "DAGSTER_POSTGRES_URL": postgres.uri().rpartition("/")[0] + "/dagster",
            },
        )
        ends.callback(lambda: [stack.stop(name) for name in list(stack.running)])
        yield stack


@pytest.mark.soak
@pytest.mark.servers
def test_the_graph_runs_through_queue_and_daemon_and_nothing_is_lost_when_services_start_again(stack):
    stack.up()
    first = stack.launch("storage_only", recipe="smoke")
    stack.until(first, "SUCCESS")
    for name in ("dagster-daemon", "dagster"):
        stack.stop(name)
    stack.start("dagster")
    stack.running["dagster"].wait_until(lambda: stack.ask(LOCATION)["repositoriesOrError"]["nodes"], timeout_s=UP_S)
    assert stack.until(first, "SUCCESS") == "SUCCESS"  # the history is in PostgreSQL
    second = stack.launch("everything", recipe="smoke", training_steps=20)
    assert stack.until(second, "QUEUED") == "QUEUED"  # for as long as no daemon takes it
    stack.up()
    stack.until(second, "STARTED", "SUCCESS")
    stack.stop("dagster")  # the run goes on without the web server
    stack.up()
    stack.until(second, "SUCCESS")
    place = LakePlace(properties=catalog_properties(stack.variables), said_by="the test")
    report = load_table(open_catalog(place), "smoke", "training_report").scan().to_arrow()
    assert report.num_rows > 0
    assert os.listdir(stack.folder / "files")
