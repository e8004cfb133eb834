"""The UI shows the same graph and launches it: the servers of `make ui`, a browser, and a person's way through it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from assets import pictures
from tests.pipelines import asking
from tests.pipelines.asking import AGAIN, LAUNCH, LOCATION, NODES, STATUS, TERMINATE
from tests.pipelines.running import GRAPH, ROOT, content, run_here, surroundings
from warehouse import embedded_catalog, load_table, open_catalog

pytestmark = pytest.mark.slow

START_TIMEOUT_S, RUN_TIMEOUT_S, PAGE_TIMEOUT_S = 240, 400, 90
SCREENSHOTS = ROOT / ".screenshots"
LAYOUTS = ("shuffled", "sorted", "by_request")


@dataclass(frozen=True)
class Servers:
    """ask: a query of the UI's own interface.  folder: of warehouse and Dagster instance.  url: of the web server."""

    ask: Callable[..., Any]
    folder: Path
    url: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    """The servers of `make ui`."""
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

    def ask(query: str, **variables: object) -> dict:
        return asking.ask(f"http://127.0.0.1:{port}", query, **variables)

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
        yield Servers(ask=ask, folder=folder, url=f"http://127.0.0.1:{port}")
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its children too: a clean end takes ten seconds, and nothing is kept
        server.wait()
        log.close()


def test_ui_shows_the_graph(ui):
    nodes = ui.ask(NODES)["assetNodes"]
    assert {one["location"]["name"] for one in ui.ask(LOCATION)["repositoriesOrError"]["nodes"]} == {
        "reqdedup",
        "daily",
    }
    found = {node["assetKey"]["path"][0]: {key["path"][0] for key in node["dependencyKeys"]} for node in nodes}
    assert found == GRAPH | {"daily_engagements": set()}


@pytest.fixture(scope="module")
def page(ui):
    """A browser's window on the UI; what it showed last is kept as a picture, whatever the test finds."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("a browser required, found no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(base_url=ui.url, viewport={"width": 1500, "height": 950})
        page.set_default_timeout(PAGE_TIMEOUT_S * 1000)
        yield page
        keep(page, "ui-last.png")
        browser.close()


def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / name)


def test_the_first_page_shows_what_make_run_has_run(ui, page, capfd):
    words = ("--recipe", "smoke", "--namespace", "made", "--select", "impressions")
    assert run_here(*words, folder=ui.folder, capfd=capfd).returncode == 0
    page.goto("/")
    page.get_by_role("link", name="everything").first.wait_for()
    keep(page, "ui-first-page.png")
    assert not page.get_by_text("No runs").count()


@pytest.mark.parametrize("job", ["storage_only", pytest.param("everything", marks=pytest.mark.soak)])
def test_a_person_configures_a_run_in_the_launchpad_materializes_it_and_reads_the_report(ui, page, job):
    seed = len(job)
    namespace = f"smoke_seed_{seed}"
    page.goto(f"/locations/reqdedup/jobs/{job}/playground")
    editor, launch = page.locator(".CodeMirror").first, page.get_by_role("button", name="Launch Run")
    page.get_by_text("No errors").wait_for()  # of the configuration as it stands there

    def configure(recipe: str) -> None:
        editor.click()
        page.keyboard.press("Control+A")
        page.keyboard.insert_text(
            f"resources: {{run_recipe: {{config: {{recipe: {recipe}, seed: {seed}, training_steps: 10}}}}}}"
        )

    configure("smok")
    page.get_by_text("recipe not in enum type Size got smok").wait_for()
    assert launch.is_disabled()
    keep(page, f"ui-{job}-misspelled.png")
    configure("smoke")
    page.get_by_text("No errors").wait_for()
    launch.click()
    page.wait_for_url("**/runs/*")
    page.get_by_text("Success", exact=True).or_(page.get_by_text("Failure", exact=True)).first.wait_for(
        timeout=RUN_TIMEOUT_S * 1000
    )
    keep(page, f"ui-{job}-run.png")
    assert page.get_by_text("Success", exact=True).count()

    page.goto("/assets/compression_report")
    page.get_by_text(namespace, exact=True).first.wait_for()
    shown = page.inner_text("body").replace("\N{NO-BREAK SPACE}", " ")
    ratios = {name: float(re.search(rf"^{name}\t.*\t([\d.]+)x", shown, re.MULTILINE)[1]) for name in LAYOUTS}
    assert ratios["shuffled"] == 1
    assert 1.5 < ratios["sorted"] < ratios["by_request"]
    assert re.search(r"^by_request\t[\d.]+ [kM]B\t[\d.]+x\t\d+%$", shown, re.MULTILINE)
    chart = page.get_by_role("img", name="chart").first
    chart.wait_for()
    assert chart.evaluate("image => image.complete && image.naturalWidth") == pictures.WIDTH
    keep(page, f"ui-{job}-report.png")

    page.goto("/")  # the first page: what was run
    page.get_by_role("link", name=job).first.wait_for()
    keep(page, f"ui-{job}-first-page.png")
    assert content(ui.folder, namespace, "engagements_by_request").rows > 0
    assert not (ui.folder / "data" / "tables" / "smoke").exists()  # of the configuration that the graph was loaded with


@pytest.mark.soak
def test_a_terminated_run_leaves_nothing_half_written_and_is_executed_again_from_its_failure(ui):
    """Ended while it trains: the namespace is free, the tables are whole, the models come from the second run."""
    (repository,) = [
        one for one in ui.ask(LOCATION)["repositoriesOrError"]["nodes"] if one["location"]["name"] == "reqdedup"
    ]
    selector = {
        "repositoryLocationName": "reqdedup",
        "repositoryName": repository["name"],
        "pipelineName": "everything",
    }
    config = {"resources": {"run_recipe": {"config": {"recipe": "smoke", "seed": 1, "training_steps": 400}}}}

    def until(run_id: str, *statuses: str, training: bool = False) -> None:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while True:
            found = ui.ask(STATUS, id=run_id)["runOrError"]
            started = {one["stepKey"] for one in found["stepStats"] if one["startTime"]}
            if found["status"] in statuses and (not training or started & {"retrieval_model", "ranking_model"}):
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.5)

    params = {"selector": selector, "mode": "default", "runConfigData": config}
    launched = ui.ask(LAUNCH, params=params)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    until(run_id, "STARTED", training=True)
    ui.ask(TERMINATE, id=run_id)
    until(run_id, "CANCELED")
    catalog = open_catalog(embedded_catalog(ui.folder / "data"))
    (claimed,) = catalog.load_table("smoke_seed_1.graph_run").scan().to_arrow().to_pylist()
    assert claimed["ended"] is not None
    before = content(ui.folder, "smoke_seed_1", "training_sample")
    again = ui.ask(AGAIN, params={"parentRunId": run_id, "strategy": "FROM_FAILURE"})["launchRunReexecution"]
    assert again["__typename"] == "LaunchRunSuccess", again
    until(again["run"]["runId"], "SUCCESS", "FAILURE")
    until(again["run"]["runId"], "SUCCESS")
    assert content(ui.folder, "smoke_seed_1", "training_sample") == before
    assert load_table(catalog, "smoke_seed_1", "training_report").scan().count() > 0
