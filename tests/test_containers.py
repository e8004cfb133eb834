"""The container files: valid, closed to the outside, without a credential of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.environment import Environment
from reqdedup.environment import CATALOG_PREFIX

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_every_service_is_watched_and_bound_to_loopback(compose):
    dagster = {"dagster-code", "dagster-daily", "dagster", "dagster-daemon"}
    assert set(compose["services"]) == {"postgres", "seaweedfs", "serve", "prometheus", "grafana"} | dagster
    assert "name" not in compose  # docker-compose 1.29 refuses it
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} opens {port} to the network"
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        named = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert {one for one in named if not one.startswith("./")} <= set(compose["volumes"])


def test_every_image_has_an_exact_version_that_does_not_move(compose):
    """Two numbers of PostgreSQL and SeaweedFS, three of the others: what a patch release would change."""
    base = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    images = {service["image"] for service in compose["services"].values()} - {"reqdedup:local"}
    numbers = {"postgres": 2, "chrislusf/seaweedfs": 2, "prom/prometheus": 3, "grafana/grafana": 3, "python": 3}
    found = [re.fullmatch(r"([a-z/]+):v?(\d+(?:\.\d+)+)(-slim-bookworm)?", image) for image in {*images, *base}]
    assert {one[1]: one[2].count(".") + 1 for one in found} == numbers


@pytest.mark.slow
def test_the_file_is_a_compose_file_by_the_specifications_own_schema(tmp_path):
    """check-jsonschema carries the schema of compose-spec; a name that it does not know is refused, too."""
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text((ROOT / "docker-compose.yml").read_text().replace("healthcheck:", "healtcheck:", 1))
    for path, code in ((ROOT / "docker-compose.yml", 0), (wrong, 1)):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
    assert "healtcheck" in done.stdout


def test_prometheus_reads_its_configuration(tmp_path):
    if not (promtool := shutil.which("promtool")):
        pytest.skip("needs promtool, of Prometheus")
    config = tmp_path / "prometheus.yml"
    (tmp_path / "token").touch()
    config.write_text((ROOT / "deploy/prometheus.yml").read_text().replace("/tmp/serve-token", f"{tmp_path}/token"))
    done = subprocess.run([promtool, "check", "config", str(config)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_asks_the_source_that_is_provisioned_and_has_a_place_of_its_own():
    provisioned = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    source = {name: provisioned["datasources"][0][name] for name in ("type", "uid")}
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/serving.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]
        assert all(asked["datasource"] == source for asked in (panel, *panel["targets"])), panel["title"]


def test_nothing_runs_as_root_that_is_built_here(compose):
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users == ["app"]
    assert all("user" not in service for service in compose["services"].values())


def test_what_is_mounted_from_here_exists_and_the_dashboard_is_found(compose):
    mounts = [
        volume.split(":")[:2]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert all((ROOT / here).exists() for here, _ in mounts)
    there = {inside: here for here, inside in mounts}
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/reqdedup.yml").read_text())[
        "providers"
    ]
    assert list((ROOT / there[provider["options"]["path"]]).glob("*.json"))
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (scraped,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["serve:8080"]}]
    for name in ("serve", "prometheus"):  # one writes the file, the other reads it
        words = compose["services"][name].get("command") or compose["services"][name]["entrypoint"]
        assert f'"$$SERVE_TOKEN" > {scraped["authorization"]["credentials_file"]} ' in words[-1]


def test_credentials_come_from_the_environment(compose):
    text = (ROOT / "docker-compose.yml").read_text()
    for service in compose["services"].values():
        for variable, value in service["environment"].items():
            if re.search("PASSWORD|KEY|TOKEN", variable):
                assert re.fullmatch(r"\$\{\w+(:\?.*)?\}", value), variable
    named = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) == named


def test_the_graph_understands_the_variables_it_is_given(compose):
    given = compose["services"]["dagster-code"]["environment"]
    variables = {name: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value) for name, value in given.items()}
    environment = Environment.from_os(variables)
    assert set(environment.catalog_properties) == {
        "type",
        "uri",
        "warehouse",
        "s3.endpoint",
        "s3.access-key-id",
        "s3.secret-access-key",
        "s3.region",
    }
    known = set(re.findall(r"REQDEDUP_[A-Z_]+", (ROOT / "pipelines" / "environment.py").read_text()))
    ours = {name for name in variables if name.startswith("REQDEDUP_") and not name.startswith(CATALOG_PREFIX)}
    assert ours <= known


def test_dagster_in_containers_is_that_of_make_ui_with_its_history_in_postgresql(compose):
    alone, here = (
        yaml.safe_load((ROOT / path).read_text()) for path in ("pipelines/dagster.yaml", "deploy/dagster/dagster.yaml")
    )
    assert {name: value for name, value in here.items() if name in alone} == alone
    assert set(here) - set(alone) == {"storage", "local_artifact_storage", "compute_logs"}
    modules = {
        one["python_module"]["location_name"]: one["python_module"]["module_name"]
        for one in yaml.safe_load((ROOT / "pipelines/workspace.yaml").read_text())["load_from"]
    }
    variables = compose["services"]["dagster"]["environment"]
    for one in yaml.safe_load((ROOT / "deploy/dagster/workspace.yaml").read_text())["load_from"]:
        server = one["grpc_server"]
        command = compose["services"][variables[server["host"]["env"]]]["command"]
        assert command[command.index("--module-name") + 1] == modules.pop(server["location_name"])
        assert command[command.index("--port") + 1] == variables[server["port"]["env"]]
    assert not modules
    assert "CREATE DATABASE dagster;" in (ROOT / "deploy/postgres/dagster.sql").read_text()
    assert variables["DAGSTER_POSTGRES_URL"].endswith("@postgres:5432/dagster")


def test_the_image_is_built_from_files_that_exist():
    copied = re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".env", ".git", "warehouse/data"} <= set(ignored)
