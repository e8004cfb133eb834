"""The UI shows the same graph and launches it: the servers of `make ui`, asked as the browser asks them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.pipelines.running import GRAPH, ROOT, content, surroundings

pytestmark = pytest.mark.slow

START_TIMEOUT_S, RUN_TIMEOUT_S = 90, 120

NODES = "{ assetNodes { assetKey { path } dependencyKeys { path } groupName } }"
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
LOCATION = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    """A function that asks the UI's own interface, and the folder behind it."""
    folder = tmp_path_factory.mktemp("ui")
    port = free_port()
    log = (folder / "webserver.log").open("w")
    server = subprocess.Popen(
        [
            Path(sys.executable).parent / "dagster",
            *["dev", "-w", "pipelines/workspace.yaml", "--host", "127.0.0.1", "--port"],
            str(port),
        ],
        cwd=ROOT,
        env=surroundings(folder) | {"REQDEDUP_RECIPE": "smoke"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def ask(query: str, **variables):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]

    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                assert len(ask(LOCATION)["repositoriesOrError"]["nodes"]) == 2
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (folder / "webserver.log").read_text()
                assert time.monotonic() < deadline, (folder / "webserver.log").read_text()
                time.sleep(0.3)
        yield ask, folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # web server, code server and daemon are its children
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def test_ui_shows_the_graph(ui):
    ask, _ = ui
    nodes = ask(NODES)["assetNodes"]
    found = {node["assetKey"]["path"][0]: {key["path"][0] for key in node["dependencyKeys"]} for node in nodes}
    assert found == GRAPH | {"daily_engagements": set()}


def test_ui_launches_an_asset_without_further_arguments(ui):
    ask, folder = ui
    found = ask(LOCATION)["repositoriesOrError"]["nodes"]
    assert {one["location"]["name"] for one in found} == {"reqdedup", "daily"}
    (repository,) = [one for one in found if one["location"]["name"] == "reqdedup"]
    selector = {
        "repositoryLocationName": repository["location"]["name"],
        "repositoryName": repository["name"],
        "pipelineName": "everything",
        "assetSelection": [{"path": ["raw_engagements"]}],
        "assetCheckSelection": [],
    }
    launched = ask(LAUNCH, params={"selector": selector, "mode": "default"})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while (status := ask(STATUS, id=launched["run"]["runId"])["runOrError"]["status"]) not in ("SUCCESS", "FAILURE"):
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    assert status == "SUCCESS"
    assert content(folder, "smoke", "raw_engagements").rows > 0
