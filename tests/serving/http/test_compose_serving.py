"""The server of docker-compose.yml, its very words run here: ready, with metrics that the dashboard names."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from reqdedup.models.bundle import Bundle
from reqdedup.sequences.filling import RequestSource, event_columns, fill_store, user_records
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.bundles.places import publish
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.retrieval.states_file import write_states
from reqdedup.serving.retrieval.user_states import user_states
from reqdedup.storage import TableSource
from tests.serving.http.servers import Server

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-of-the-tests-0123456789"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(trained_bundles, tmp_path_factory):
    """The volume as the graph leaves it, and a server over it."""
    data = tmp_path_factory.mktemp("data")
    publish(data / "serving" / "laptop" / "bundle", [trained_bundles.ranking, trained_bundles.retrieval])
    (data / "stores").mkdir()
    store = SqliteStore(data / "stores" / "laptop.sqlite", event_columns(TableSource(trained_bundles.main).schema))
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    store.close()
    retriever = Retriever.of(Bundle.load(trained_bundles.retrieval))
    states = user_states(retriever, user_records(RequestSource(trained_bundles.main, [])))
    write_states(data / "serving" / "laptop" / "user_states.parquet", states, model=retriever.fingerprint)
    (data / "token").write_text(TOKEN)
    script = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["serve"]["command"][-1]
    script = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", script)
    words = script.partition("exec reqdedup serve ")[2].replace("--port 8080", "").split()
    here = {"0.0.0.0": "127.0.0.1", "/tmp/serve-token": str(data / "token")}
    words = [here.get(word, word.replace("warehouse/data", str(data))) for word in words]
    with Server(*words) as running:
        yield running


def get(server, path, body=None, token=TOKEN):
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(server.url + path, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_every_metric_of_the_dashboard_is_one_of_the_server(served):
    said = get(served, "/metrics")
    known = {line.split()[2]: line.split()[3] for line in said.splitlines() if line.startswith("# TYPE")}
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/serving.json").read_text())
    named = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            named |= set(re.findall(r"\b(?:reqdedup|process)_\w+", target["expr"]))
    histograms = {
        f"{name}_{end}" for name, kind in known.items() for end in ("bucket", "sum", "count") if kind == "histogram"
    }
    assert named <= known.keys() | histograms
    assert {name for name in known if name.startswith("reqdedup")} - {
        re.sub("_bucket$", "", name) for name in named
    } == set()


def test_the_first_request_of_every_user_finds_the_state_that_was_computed_ahead(served, trained_bundles):
    users = set(TableSource(trained_bundles.main).to_arrow(["user_id"])["user_id"].to_pylist())
    for user in sorted(users)[:5]:
        assert json.loads(get(served, "/v1/retrieve", {"user_id": user, "k": 3}))["context"] == "kept"


def test_it_asks_for_the_token(served):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(served, "/metrics", token="another")
