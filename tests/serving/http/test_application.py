"""The application without a network: what loads, what is said when a store or a bundle fails, and to whom."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import shutil
import threading
from pathlib import Path

import orjson
import pytest

from reqdedup.models.bundle import MANIFEST
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.limits import Limits
from reqdedup.serving.names import OF_USER, QUEUE_FULL
from reqdedup.serving.routing import worker_of
from reqdedup.serving.scheduler import Scheduler, Work
from reqdedup.serving.server.app import Application, Service
from reqdedup.serving.server.loading import Loader
from reqdedup.serving.server.metrics import Metrics
from reqdedup.serving.server.router import Router
from reqdedup.serving.server.settings import ServeSettings
from reqdedup.serving.server.swap import Models
from tests.serving.http.wrong_bodies import bodies, with_one_wrong

pytestmark = pytest.mark.slow


class Asked:
    """An application over these bundles, asked in this process."""

    def __init__(self, settings: ServeSettings) -> None:
        self.runner, self.scheduler, loader = asyncio.Runner(), Scheduler(), Loader(settings)
        self.models = Models(loader.put, loader.start()[0], self.scheduler)
        self.application = Application(
            Service(
                models=self.models,
                scheduler=self.scheduler,
                limits=settings.limits,
                metrics=Metrics({}),
                store=loader.store,
                event_columns=loader.event_columns(),
                bundles=Path(str(settings.may_load_from)),
                folders=settings.folders,
                needs_store=settings.on_missing_history == "refuse",
                is_ready=True,
            )
        )

    def __call__(self, path, body=None):
        """Status and parsed answer of a POST, of a GET without a body."""
        return self.runner.run(self.answer(path, body))

    async def answer(self, path, body):
        sent = []
        scope = {
            "type": "http",
            "method": "GET" if body is None else "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }

        async def receive():
            return {"type": "http.request", "body": b"" if body is None else orjson.dumps(body)}

        async def send(message):
            sent.append(message)

        await self.application(scope, receive, send)
        return sent[0]["status"], orjson.loads(sent[1]["body"])

    def close(self):
        self.application.close()
        self.runner.close()


def changed_signature(folder, change):
    """A bundle whose signature was changed, and its manifest with it, as somebody who means well does."""
    signature, manifest = folder / "signature.json", folder / MANIFEST
    values, said = json.loads(signature.read_text()), json.loads(manifest.read_text())
    change(values)
    content = json.dumps(values).encode()
    signature.write_bytes(content)
    said["files"]["signature.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(said))


@pytest.fixture(scope="module")
def bundles(trained_bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles of a server")
    for name in ("first", "again", "text", "one label", "broken"):
        shutil.copytree(trained_bundles.ranking, folder / name)
    changed_signature(folder / "again", lambda values: values.update(note="the same model under another name"))
    changed_signature(folder / "text", lambda values: values["inputs"][3].update(dtype="string"))
    changed_signature(folder / "one label", lambda values: values.update(outputs=values["outputs"][:1]))
    weights = folder / "broken" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.copytree(trained_bundles.retrieval, folder / "retrieval")
    return folder


@pytest.fixture
def ask(bundles, store_file, tmp_path, request):
    """A server with both models and a store of its own."""
    shutil.copy(store_file, tmp_path / "store.db")
    made = Asked(
        ServeSettings(
            bundles=(str(bundles / "first"), str(bundles / "retrieval")),
            store=str(tmp_path / "store.db"),
            may_load_from=str(bundles),
            on_missing_history=getattr(request, "param", "refuse"),
        )
    )
    yield made
    made.close()


def stored(table_requests):
    one = next(one for one in table_requests if one.is_last)
    candidates = {name: values.tolist() for name, values in one.sent.candidates.items()}
    return one, {"user_id": one.sent.user_id, "candidates": candidates}


def test_a_bundle_that_cannot_be_served_is_a_409_that_says_what_and_no_path(ask, bundles):
    serving = ask("/v1/models")[1]
    for name, said in (
        ("text", "bundle: text/signature.json: input {} a dtype of bool, int32, int64, float32, float64, timestamp"),
        ("one label", "bundle: one label/signature.json: outputs of the model, click, save, long_dwell, required"),
        ("broken", "bundle: broken/weights.safetensors: "),
        ("nothing", "bundle: nothing/manifest.json: manifest of a bundle required, found no file"),
    ):
        text = json.loads((bundles / "text" / "signature.json").read_text())["inputs"][3]["name"]
        for action in ("load", "shadow"):
            status, answer = ask("/v1/models", {"action": action, "bundle": name})
            assert status == 409
            message = answer["error"]["message"]
            assert message.startswith(said.replace("{}", f"{text}:")), message
            assert message.count(" required, found ") == 1
            assert str(bundles.parent) not in message
        described = ask("/v1/models")[1]
        assert described["last_error"] in message
        assert described["models"] == serving["models"]
    assert [one["bundle"] for one in serving["models"]] == ["first", "retrieval"]
    assert ask("/v1/models", {"action": "load", "bundle": "text"})[1]["error"]["found"] == "string"
    for wrong in ("..", "/etc"):
        status, answer = ask("/v1/models", {"action": "load", "bundle": wrong})
        assert (status, str(bundles) in str(answer)) == (403, False)


def test_the_page_has_every_call_and_examples_of_the_protocol_are_answered(ask):
    paths = ask("/openapi.json")[1]["paths"]
    routes = {route.path.replace("{model}", "ranking") for route in ask.application._routes}
    assert paths.keys() == {path for path in routes if "{version}" not in path} - {"/docs", "/openapi.json"}
    path = "/v2/models/ranking/infer"
    (body,) = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["examples"]
    status, answer = ask(path, body)
    assert status == 200, answer
    assert {len(one["data"]) for one in answer["outputs"]} == {1}


def test_a_value_of_another_kind_is_refused_by_every_call(ask, table_requests):
    before = ask("/v1/models")[1]["models"]
    for path, goods in bodies(**stored(table_requests)[1]).items():
        for body in itertools.chain.from_iterable(map(with_one_wrong, goods)):
            status, answer = ask(path, {} if body is None else body)  # None would be a GET
            assert status in (200, 504) or (400 <= status < 500 and answer["error"]["message"]), (path, body, answer)
            assert status != 200 or path not in ("/v1/events", "/v1/models"), body
    assert ask("/v1/models")[1]["models"] == before


def test_a_shadow_scores_the_items_of_slates_too(ask, table_requests):
    user_id = table_requests[0].sent.user_id
    assert ask("/v1/models", {"action": "shadow", "bundle": "again"})[0] == 200
    assert len(ask("/v1/recommend", {"user_id": user_id, "length": 3})[1]["items"]) == 3
    assert ask("/v1/recommend", {"user_id": user_id, "filter": {"allow": []}})[1]["items"] == []
    ask.scheduler.submit(Work(group="behind", run=list, request=None, rows=0, deferred=True)).result(5)
    report = ask("/v1/models")[1]["shadow"]
    assert (report["requests"], report["failed"], report["last_error"]) == (1, 0, "")
    assert report["max_difference"] < 1e-6, "up to rounding: they were ranked among more candidates"


@pytest.mark.parametrize(("path", "num_steps"), [("/v1/rank", 1), ("/v1/retrieve", 5), ("/v1/recommend", 5)])
def test_what_is_not_computed_together_does_not_wait_for_its_neighbours(ask, table_requests, path, num_steps):
    """What comes while another request is computed shares a step if that is what its model does."""
    values = stored(table_requests)[1]
    more = {"/v1/rank": {"candidates": values.pop("candidates")}, "/v1/retrieve": {"k": 3}}.get(path, {})
    begins, goes_on = threading.Event(), threading.Event()

    def wait(requests):
        begins.set()
        assert goes_on.wait(10)
        return requests

    async def several():
        first = ask.scheduler.submit(Work(group="first", run=wait, request=None, rows=0))
        assert begins.wait(10)
        waiting = [asyncio.create_task(ask.answer(path, values | more)) for _ in range(5)]
        await asyncio.sleep(0)
        while ask.scheduler.waiting[0] < 5:
            await asyncio.sleep(0.001)
        goes_on.set()
        first.result(10)
        return await asyncio.gather(*waiting)

    assert [status for status, _ in ask.runner.run(several())] == [200] * 5
    assert ask.scheduler.counts.steps == 1 + num_steps


def test_a_bundle_that_cannot_be_served_keeps_a_server_from_beginning(bundles):
    with pytest.raises(
        ValueError, match=r"text/signature\.json: input \w+: a dtype of bool, .* required, found string"
    ):
        Loader(ServeSettings(bundles=(str(bundles / "text"),))).start()


def test_a_store_without_a_column_that_the_model_reads_keeps_a_server_from_beginning(bundles, tmp_path):
    SqliteStore(tmp_path / "s.db", {"item_id": "int64"}).close()
    loader = Loader(ServeSettings(bundles=(str(bundles / "first"),), store=str(tmp_path / "s.db")))
    with pytest.raises(ValueError, match="events with action required in the store, found item_id"):
        loader.start()


def test_every_label_is_answered_and_those_without_a_weight_are_named_when_models_load(
    ask, bundles, table_requests, caplog
):
    one, rank = stored(table_requests)
    labels = ["click", "save", "long_dwell"]
    assert list(ask("/v1/rank", rank)[1]["logits"]) == labels
    status, answer = ask("/v1/recommend", {"user_id": one.sent.user_id, "length": 3})
    assert status == 200
    assert all(list(item["logits"]) == labels for item in answer["items"])
    described = {model["name"]: model["labels"] for model in ask("/v1/models")[1]["models"]}
    assert described["ranking"] == labels
    caplog.set_level(logging.INFO)
    assert ask("/v1/models", {"action": "load", "bundle": "first"})[0] == 200
    assert "slates are ranked by click; save, long_dwell: answered beside, without a weight" in caplog.text


def test_a_store_that_is_gone_is_a_503_without_its_path_not_ready_and_ready_again(
    ask, table_requests, tmp_path, caplog
):
    one, rank = stored(table_requests)
    events = {"user_id": 1, "events": {"item_id": [1], "action": [1]}, "idempotency_key": "k"}
    assert ask("/readyz") == (200, {"ready": True})
    answered = ask("/v1/rank", rank)
    assert answered[0] == 200
    reason = "store: its file required, found No such file or directory"
    for _ in range(2):
        shutil.move(tmp_path / "store.db", tmp_path / "away.db")
        for path, body in (
            ("/v1/rank", rank),
            ("/v1/recommend", {"user_id": one.sent.user_id}),
            ("/v1/events", events),
        ):
            assert ask(path, body) == (503, {"error": {"message": reason}}), path
        for path in ("/readyz", "/v2/health/ready", "/v2/models/ranking/ready"):
            assert ask(path) == (503, {"ready": False, "reason": reason}), path
        assert ask("/healthz") == (200, {"live": True})
        shutil.move(tmp_path / "away.db", tmp_path / "store.db")
        assert ask("/readyz") == (200, {"ready": True})
        assert ask("/v1/rank", rank)[1]["logits"] == answered[1]["logits"]
    assert caplog.text.count(f"store {tmp_path / 'store.db'}: its file required") == 1  # not for every request
    (tmp_path / "store.db").unlink()
    (tmp_path / "store.db").write_text("no database")
    status, answer = ask("/readyz")
    assert (status, answer["ready"], str(tmp_path) in str(answer)) == (503, False, False)


@pytest.mark.parametrize("ask", ["empty"], indirect=True)
def test_a_server_that_does_without_histories_stays_ready_and_says_what_it_lacks(ask, table_requests, tmp_path):
    (tmp_path / "store.db").unlink()
    assert ask("/readyz") == (
        200,
        {"ready": True, "reason": "store: its file required, found No such file or directory"},
    )


def test_a_change_of_models_may_take_longer_than_a_request():
    async def answer(reader, writer):
        await reader.readuntil(b"{}")
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def asked(path):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"{}"}

        async def send(message):
            sent.append(message)

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as worker:
            router = Router([worker.sockets[0].getsockname()], Limits(max_deadline_ms=20))
            router._workers[0]._timeout_s = 0.05
            target = {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
            await router({"type": "http", "method": "POST", **target}, receive, send)
            return sent[0]["status"]

    assert asyncio.run(asked("/v1/rank")) == 503
    assert asyncio.run(asked("/v1/models")) == 200


def test_a_router_says_why_its_workers_are_not_ready():
    async def asked():
        router = Router([("127.0.0.1", 1), ("127.0.0.1", 1)], Limits())
        answers = iter([(503, [], b'{"ready": false, "reason": "store: gone"}'), (503, [], b"{}")])

        async def ask(scope, body):
            return next(answers)

        for worker in router._workers:
            worker.ask = ask
        return await router._of_all({}, "/readyz")

    status, _, body = asyncio.run(asked())
    assert (status, orjson.loads(body)) == (503, {"ready": False, "workers": 0, "reason": "store: gone"})


def test_a_router_refuses_for_a_worker_that_was_full_and_asks_it_again_after_a_moment():
    refusal = 503, [(b"retry-after", b"2"), (QUEUE_FULL.encode(), b"1")], b"full"
    users = [next(user for user in range(99) if worker_of(user, 2) == number) for number in (0, 1)]

    async def asked(full_for_s):
        router = Router([("127.0.0.1", 1), ("127.0.0.1", 1)], Limits(), full_for_s=full_for_s)
        told, answers = [], {0: refusal, 1: (200, [], b"{}")}
        for number, worker in enumerate(router._workers):

            async def ask(scope, body, *, is_patient=False, number=number):
                told.append(number)
                return answers[number]

            worker.ask = ask

        async def call(user, *, path="/v1/rank", named=True):
            reads, sent = [], []

            async def receive():
                reads.append(user)
                return {"type": "http.request", "body": orjson.dumps({"user_id": user})}

            async def send(message):
                sent.append(message)

            headers = [(OF_USER.encode(), b"%d" % user)] if named else []
            await router({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
            return sent[0]["status"], len(reads), len(told)

        of_version = "/v2/models/ranking/versions/a/infer"
        found = [await call(users[0], path=path) for path in ("/v1/rank", "/v1/rank", of_version)]
        found += [await call(users[0], named=False), await call(users[0], path="/v1/events"), await call(users[1])]
        return found, router.metrics.value("reqdedup_router_refused_total")

    # neither read nor passed on, then read to know whose it is; events do not wait in that queue
    assert asyncio.run(asked(60)) == ([(503, 1, 1), *[(503, 0, 1)] * 2, (503, 1, 1), (503, 1, 2), (200, 1, 3)], 3)
    assert asyncio.run(asked(0)) == ([*[(503, 1, asks) for asks in range(1, 6)], (200, 1, 6)], 0)
