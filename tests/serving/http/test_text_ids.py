"""A log whose ids are texts (the preset mind): requests may name users and items as the log does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog

from reqdedup.ingest import ingest
from reqdedup.logs import read_log
from reqdedup.logs.ids import hash_string
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.bundle import Bundle
from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.limits import Limits
from reqdedup.serving.names import ARROW, REQUEST_KEY
from reqdedup.serving.requests import RequestError
from reqdedup.serving.server.router import _user_of
from reqdedup.serving.wire import oip
from reqdedup.serving.wire.bodies import Inputs
from reqdedup.storage import Layout, TableSource
from reqdedup.training import TrainingConfig
from reqdedup.training.export import export_checkpoint
from reqdedup.training.rank_run import run_rank
from tests.serving.conftest import SIZES
from tests.serving.http.servers import Server

pytestmark = pytest.mark.slow
NUM_USERS, NUM_ITEMS = 24, 30


def mind_log(path):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(3 * NUM_USERS):
        history = " ".join(f"N{item}" for item in rng.choice(NUM_ITEMS, rng.integers(0, 9), replace=False))
        shown = rng.choice(NUM_ITEMS, 5, replace=False)
        candidates = " ".join(f"N{item}-{int(place == 0)}" for place, item in enumerate(shown))
        time = f"11/{11 + number // NUM_USERS}/2019 9:{number % 60:02d}:58 AM"
        lines.append(f"{number + 1}\tU{number % NUM_USERS}\t{time}\t{history}\t{candidates}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mind")


@pytest.fixture(scope="module")
def bundles(folder):
    (folder / "log").mkdir()
    mind_log(folder / "log" / "behaviors.tsv")
    log = read_log(folder / "log", preset="mind")
    catalog = load_catalog("test", type="sql", uri=f"sqlite:///{folder}/c.db", warehouse=f"file://{folder}/lake")
    ingest(catalog, "news.main", log, Layout.BY_REQUEST, num_buckets=2)
    main = catalog.load_table("news.main")
    source = TableSource(main)
    store = SqliteStore(folder / "store.db", event_columns(source.schema))
    fill_store(store, main, [])
    store.close()
    sizes = {name: value for name, value in SIZES.items() if name != "numbers"}
    found = {}
    for task, model in (
        ("ranking", DCATConfig.from_schema(source.schema, **sizes)),
        ("retrieval", TwoTowerConfig.from_schema(source.schema, output_width=8, **sizes)),
    ):
        training = TrainingConfig(
            model=model, num_steps=2, requests_per_step=8, learning_rate=0.02, world_size=1, eval_requests=8
        )
        run_rank(lambda _: None, training, source, str(folder / task), source.snapshot_id)
        found[task] = export_checkpoint(folder / task / CHECKPOINT_NAME, source, folder / "bundles" / task)
    return found


@pytest.fixture(scope="module")
def news(bundles, folder):
    with Server(bundles["ranking"], bundles["retrieval"], "--store", folder / "store.db") as running:
        yield running


@pytest.fixture(scope="module")
def ids(bundles):
    """The id that the vocabulary gave each item, as the bundle has it."""
    items = Bundle.load(bundles["ranking"]).items
    assert sorted(items.item_id_V.tolist()) == list(range(NUM_ITEMS))
    return dict(zip(items.keys, items.item_id_V.tolist(), strict=True))


def ask(server, path, values, content_type="application/json"):
    body = values if isinstance(values, bytes) else json.dumps(values).encode()
    request = urllib.request.Request(
        server.url + path, body, {"content-type": content_type, "accept": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_signature_says_that_users_are_texts(bundles, trained_bundles):
    for task in ("ranking", "retrieval"):
        assert Bundle.load(bundles[task]).signature.user_keys
        vocabulary = json.loads((bundles[task] / "signature.json").read_text())["vocabulary"]
        assert vocabulary == {"item_id": "items", "user_id": "user_key"}
    assert not Bundle.load(trained_bundles.ranking).signature.user_keys


def test_users_and_candidates_are_named_as_the_log_names_them(news, ids):
    keys = ["N3", "N7", "N11"]
    by_id = {"user_id": hash_string("U3"), "candidates": {"item_id": [ids[key] for key in keys]}}
    status, wanted = ask(news, "/v1/rank", by_id)
    assert status == 200, wanted
    assert wanted["end"] > 0
    for body in (
        {"user_key": "U3", "candidates": {"item_key": keys}},
        {**by_id, "candidates": {"item_key": keys}},
    ):
        status, found = ask(news, "/v1/rank", body)
        assert status == 200, found
        assert (found["logits"], found["end"]) == (wanted["logits"], wanted["end"])
    table = pa.table({"item_key": keys}).replace_schema_metadata({REQUEST_KEY: b'{"user_key": "U3"}'})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    status, found = ask(news, "/v1/rank", sink.getvalue().to_pybytes(), ARROW)
    assert status == 200, found
    assert found["logits"] == wanted["logits"]


def test_items_of_histories_and_events_and_of_the_open_inference_protocol_go_by_their_keys_too(news, ids, bundles):
    keys, seen = ["N3", "N7", "N11"], ["N2", "N5", "N9", "N2"]
    names = [c.name.removeprefix("history_") for c in Bundle.load(bundles["ranking"]).transforms.history_columns]
    others = {name: [1] * len(seen) for name in names if name != "item_id"}
    by_id = {
        "user_id": hash_string("U3"),
        "candidates": {"item_id": [ids[key] for key in keys]},
        "history": {"columns": {"item_id": [ids[key] for key in seen], **others}},
    }
    status, wanted = ask(news, "/v1/rank", by_id)
    assert status == 200, wanted
    by_key = {**by_id, "history": {"columns": {"item_key": seen, **others}}}
    assert ask(news, "/v1/rank", by_key)[1]["logits"] == wanted["logits"]
    by_key["history"]["columns"]["item_key"] = [*seen[:3], "N99"]
    status, said = ask(news, "/v1/rank", by_key)
    assert (status, said["error"]["column"]) == (422, "history.columns.item_key")

    def texts(name, values):
        return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": values}

    tensors = [texts("user_key", ["U3"]), texts("item_key", keys), texts("history_item_key", seen)]
    tensors += [
        {"name": f"history_{name}", "shape": [len(seen)], "datatype": "INT32", "data": values}
        for name, values in others.items()
    ]
    status, found = ask(news, "/v2/models/ranking/infer", {"inputs": tensors})
    assert status == 200, found
    assert {one["name"]: one["data"] for one in found["outputs"]} == wanted["logits"]
    binary, head = b"", {"inputs": tensors}
    for tensor in tensors[:3]:
        data = b"".join(len(one).to_bytes(4, "little") + one.encode() for one in tensor.pop("data"))
        tensor["parameters"] = {"binary_data_size": len(data)}
        binary += data
    text = json.dumps(head).encode()
    asked, _, _ = oip.rank_request_of(text + binary, len(text), inputs_of(bundles["ranking"]), Limits())
    assert asked.request.candidates["item_id"].tolist() == [ids[key] for key in keys]
    assert asked.request.history.columns["item_id"].tolist() == [ids[key] for key in seen]
    with pytest.raises(RequestError, match="user_key: binary_data_size bytes of texts"):
        oip.rank_request_of(text + b"\xff" + binary[1:], len(text), inputs_of(bundles["ranking"]), Limits())

    with closing(SqliteStore(bundles["ranking"].parents[1] / "store.db")) as store:
        events = {name: [1, 2] for name in store.columns if name != "item_id"}
        body = {"user_key": "U-keys", "events": {**events, "item_key": ["N4", "N6"]}, "idempotency_key": "keys"}
        status, said = ask(news, "/v1/events", body)
        assert status == 200, said
        found = store.window(hash_string("U-keys"), ["item_id"], start_of=lambda _: 0).columns["item_id"].tolist()
        assert found == [ids["N4"], ids["N6"]]


def inputs_of(folder):
    bundle = Bundle.load(folder)
    return Inputs.of(bundle.transforms, items=bundle.items, user_keys=True)


def test_a_candidate_that_nobody_knows_is_refused_by_its_name(news):
    status, said = ask(news, "/v1/rank", {"user_key": "U3", "candidates": {"item_key": ["N3", "N99"]}})
    assert (status, said["error"]["column"]) == (422, "candidates.item_key")
    assert "N99" in said["error"]["message"]


def test_filters_take_keys_and_count_those_that_are_unknown(news):
    allow = {"allow": ["N1", "N2", "N99"], "deny": ["N2", "N98"]}
    status, found = ask(news, "/v1/retrieve", {"user_key": "U5", "k": 5, "filter": allow})
    assert status == 200, found
    assert found["item_key"] == ["N1"]
    status, found = ask(news, "/v1/recommend", {"user_key": "U5", "length": 3, "filter": {"deny": ["N1"]}})
    assert status == 200, found
    assert len(found["items"]) == 3
    assert "N1" not in {item["item_key"] for item in found["items"]}
    status, found = ask(news, "/v1/retrieve", {"user_key": "U5", "k": 5, "filter": {"allow": ["N99"]}})
    assert (status, found["item_key"]) == (200, [])
    with urllib.request.urlopen(f"{news.url}/metrics", timeout=30) as answer:
        assert "reqdedup_unknown_keys_total 3" in answer.read().decode()


@pytest.mark.parametrize("wrong", [{"user_key": "U1", "user_id": 1}, {"user_key": ""}, {"user_key": 7}, {}])
def test_a_user_is_named_once(news, wrong):
    status, said = ask(news, "/v1/retrieve", {"k": 1, **wrong})
    assert status == 422, said
    assert said["error"]["column"] in ("user_key", "user_id")


def test_events_of_a_user_by_key_and_the_api_page(news):
    with urllib.request.urlopen(f"{news.url}/openapi.json", timeout=30) as answer:
        paths = json.loads(answer.read())["paths"]
    body = paths["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "user_key" in body["properties"]
    assert "item_key" in body["properties"]["candidates"]["properties"]
    columns = paths["/v1/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"][
        "events"
    ]
    events = {name: [1] for name in columns["properties"]}
    status, said = ask(news, "/v1/events", {"user_key": "U-new", "events": events, "idempotency_key": "a"})
    assert (status, said) == (200, {"user_id": hash_string("U-new"), "history_end": 1, "timeline_version": 0})


def test_a_server_of_a_log_with_numbers_refuses_keys(server):
    status, said = ask(server, "/v1/retrieve", {"user_key": "7", "k": 1})
    assert (status, said["error"]["column"]) == (422, "user_key")
    for path, body in (
        ("/v1/rank", {"candidates": {"item_key": ["7"]}}),
        ("/v1/rank", {"candidates": {"item_id": [7]}, "history": {"columns": {"item_key": ["7"]}}}),
        ("/v1/events", {"events": {"item_key": ["7"]}, "idempotency_key": "a"}),
    ):
        status, said = ask(server, path, {"user_id": 7, **body})
        assert (status, said["error"]["required"]) == (422, "item_id, since the items here are numbers"), said
    status, said = ask(server, "/v1/retrieve", {"user_id": 7, "k": 1, "filter": {"deny": ["7"]}})
    assert (status, said["error"]["column"]) == (422, "filter.deny")


def test_the_router_sends_a_key_to_the_worker_of_its_id():
    assert _user_of("/v1/rank", {}, b'{"user_key": "U3"}') == hash_string("U3")
