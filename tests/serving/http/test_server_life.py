"""Two workers behind a router, and what happens to them: events, other models, kills, the end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from reqdedup.models.bundle import Bundle
from reqdedup.serving.client import Client, ServerError
from reqdedup.serving.requests import RankRequest
from reqdedup.serving.routing import worker_of
from tests.serving.http.servers import Server, other_bundle, stacked
from tests.serving.http.wrong_bodies import bodies, with_one_wrong

TOKEN = "a-token-of-the-tests-0123456789"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundles(trained_bundles, tmp_path_factory):
    """A folder with the trained ranking model and another one beside it."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("first", "watched"):
        shutil.copytree(trained_bundles.ranking, folder / name)
    other_bundle(folder / "second", trained_bundles.ranking)
    return folder


@pytest.fixture(scope="module")
def workers(bundles, store_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    shutil.copy(store_file, folder / "store.db")
    (folder / "token").write_text(TOKEN + "\n")
    words = ["--store", folder / "store.db", "--workers", 2, "--token", folder / "token", "--load-from", bundles]
    with Server(bundles / "watched", *words, "--watch", 0.2) as running:
        yield running


@pytest.fixture
def last(table_requests):
    """Requests that the store alone answers, of users of both workers."""
    found = [one for one in table_requests if one.is_last]
    assert {worker_of(one.sent.user_id, 2) for one in found} == {0, 1}
    return found


def stored(one) -> RankRequest:
    return RankRequest(user_id=one.sent.user_id, candidates=one.sent.candidates)


def exact(bundle, one) -> bytes:
    return bundle.model.predict_exact(one.batch).numpy().tobytes()


def children(server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def test_nothing_is_said_without_the_token(workers):
    for token in (None, "another-token-of-16-characters"):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/workers"):
            with pytest.raises(ServerError) as refused:
                Client(workers.url, token=token).get(path)
            assert refused.value.status == 401
    assert Client(workers.url).get("/healthz") == b'{"live":true}'


@pytest.mark.parametrize("direct", [False, True])
def test_every_user_has_one_worker_and_the_right_bits(workers, last, direct):
    client = workers.client(token=TOKEN, direct=direct)
    for _ in range(2):
        for one in last[:20]:
            assert stacked(client.rank(stored(one))).tobytes() == one.logits.tobytes()
    lines = client.get("/metrics").decode().splitlines()
    counts = {line[:40]: float(line.rpartition(" ")[2]) for line in lines if "reqdedup_contexts_total{" in line}
    assert counts
    computed = sum(float(line.rpartition(" ")[2]) for line in lines if 'contexts_total{origin="computed"' in line)
    assert computed <= len(last)


def test_events_extend_the_context_to_the_bits_of_a_fresh_one(workers, last, bundles):
    client, one = workers.client(token=TOKEN), last[0]
    bundle = Bundle.load(bundles / "first")
    before = client.rank(stored(one))
    events = {"item_id": np.array([3, 5, 7]), "action": np.array([1, 0, 1], np.int32)}
    end = client.append(one.sent.user_id, events, key="a")
    again = client.append(one.sent.user_id, events, key="a")
    assert (end, again) == (end, end)
    assert end.end == before.end + 3
    ranked = client.rank(stored(one))
    history = {name: np.concatenate([one.sent.history.columns[name], events[name]]) for name in events}
    batch = bundle.transforms.batch(
        request=one.sent.request, history=history, candidates=one.sent.candidates, history_end=end.end
    )
    assert ranked.end == end.end
    assert stacked(ranked).tobytes() == bundle.model.predict_exact(batch).numpy().tobytes()
    replayed = client.rank(dataclasses.replace(stored(one), at=before.end))
    assert stacked(replayed).tobytes() == one.logits.tobytes()


def test_a_key_of_another_user_is_refused_and_nothing_is_appended(workers):
    client = workers.client(token=TOKEN)
    first, second = 10**12, 10**12 + 1
    events = {"item_id": [1], "action": [1]}
    client.append(first, events, key="the first's")
    with pytest.raises(ServerError, match="idempotency_key: a key that no other user's events had") as refused:
        client.append(second, events, key="the first's")
    assert refused.value.status == 409
    assert client.append(second, events, key="the second's").end == 1


def test_what_the_router_cannot_read_is_refused_at_once_and_nothing_hangs(workers):
    token = f"authorization: Bearer {TOKEN}\r\n".encode()
    post = b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\n" + token
    arrow = b"content-type: application/vnd.apache.arrow.stream\r\n"
    broken = b"\xff\xff\xff\xff\x10\0\0\0" + b"\x01" * 16 + b"\xff\xff\xff\xff\0\0\0\0"
    for data, status in (
        (b"HEAD /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n", b"200"),
        (b"TRACE /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", b"405"),
        (b"HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\n" + token + b"\r\n", b"200"),
        (post + arrow + b"content-length: %d\r\n\r\n" % len(broken) + broken, b"400"),
        (post + b"content-type: application/json\r\ncontent-length: 100000000\r\n\r\n{", b"413"),
    ):
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", workers.port), timeout=20) as connection:
            connection.sendall(data)
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert answer.lower().count(b"\r\ndate:") == 1
        assert time.monotonic() - started < 5


def test_a_value_of_another_kind_is_refused_behind_the_router_too(workers, last):
    client, one = workers.client(token=TOKEN, retries=0), last[0]
    before = json.loads(client.get("/v1/models"))["models"]
    candidates = {name: values.tolist() for name, values in one.sent.candidates.items()}
    goods = bodies(one.sent.user_id, candidates)
    for path in ("/v1/models", "/v1/events", "/v2/models/ranking/infer"):
        for body in itertools.chain.from_iterable(map(with_one_wrong, goods[path])):
            if isinstance(body, dict) and body.get("to", "") is None:
                continue  # back to the models of another test
            head = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
            answer, data = client._exchange(workers.url, path, json.dumps(body).encode(), head)
            assert answer.status == 200 or 400 <= answer.status < 500, (path, body, data)
    assert json.loads(client.get("/v1/models"))["models"] == before


def test_what_cannot_be_done_to_the_models_says_what_it_lacks(workers):
    client = workers.client(token=TOKEN)
    for action, needed in (("rollback", "before this one"), ("promote", "in the shadow")):
        with pytest.raises(ServerError, match=f"409: action: a model {needed} required, found none") as refused:
            client.change_models(action)
        assert refused.value.status == 409


def test_no_answer_mixes_two_models_while_they_are_swapped(workers, last, bundles):
    """Every answer has the bits of the model that it names, and none fails, while models change under load."""
    models = {name: Bundle.load(bundles / name) for name in ("first", "second")}
    expected = {bundle.fingerprint: [exact(bundle, one) for one in last[1:9]] for bundle in models.values()}
    stop, wrong, seen = threading.Event(), [], set()

    def ask():
        client = workers.client(token=TOKEN)
        while not stop.is_set():
            for place, one in enumerate(last[1:9]):
                ranked = client.rank(stored(one))
                seen.add(ranked.model)
                if stacked(ranked).tobytes() != expected[ranked.model][place]:
                    wrong.append(ranked)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    admin = workers.client(token=TOKEN)
    try:
        for action, bundle in (("load", "second"), ("rollback", None), ("load", "second"), ("load", "first")):
            admin.change_models(action, bundle)
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert seen == set(expected)


def test_a_broken_bundle_changes_nothing(workers, last, bundles):
    client = workers.client(token=TOKEN)
    shutil.copytree(bundles / "second", bundles / "broken")
    weights = bundles / "broken" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for bundle in ("broken", "nothing"):
        with pytest.raises(ServerError) as refused:
            client.change_models("load", bundle)
        assert refused.value.status == 409
    assert stacked(client.rank(stored(last[1]))).tobytes() == last[1].logits.tobytes()


def test_the_shadow_scores_beside_and_says_what_differs(workers, last):
    client = workers.client(token=TOKEN, direct=True)
    client.rank(stored(last[1]))
    client.change_models("shadow", "second")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for one in last[1:20]:
            assert stacked(client.rank(stored(one))).tobytes() == one.logits.tobytes()
        report = client.models()["shadow"]
        if report["requests"]:
            break
    assert report["failed"] == 0, report
    assert 0 < report["max_difference"] < 10
    client.change_models("stop_shadow")


def test_workers_that_cannot_begin_end_the_server_with_a_sentence(tmp_path):
    words = ["serve", str(tmp_path), "--workers", "2", "--port", "0"]
    done = subprocess.run([sys.executable, "-m", "reqdedup.cli", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "manifest.json: manifest of a bundle required, found no file" in done.stderr
    assert "Traceback" not in done.stderr
    assert "started again" not in done.stderr


def test_a_killed_worker_is_started_again_and_no_answer_is_wrong(workers, last):
    client = workers.client(token=TOKEN, retries=20)
    victim = children(workers)[0]
    stop, wrong = threading.Event(), []

    def ask():
        asking = workers.client(token=TOKEN, retries=20)
        while not stop.is_set():
            for one in last[1:12]:
                if stacked(asking.rank(stored(one))).tobytes() != one.logits.tobytes():
                    wrong.append(one)

    thread = threading.Thread(target=ask)
    thread.start()
    os.kill(victim.pid, signal.SIGKILL)
    for one in last[1:12]:
        assert stacked(client.rank(stored(one))).tobytes() == one.logits.tobytes()
    stop.set()
    thread.join()
    assert not wrong
    assert victim.pid not in [one.pid for one in children(workers)]
    restarts = [line for line in client.get("/metrics").decode().splitlines() if "worker_restarts_total{" in line]
    assert sorted(float(line.rpartition(" ")[2]) for line in restarts) == [0, 1]


def test_a_worker_that_is_started_again_loads_what_serves_now(workers, last, bundles):
    admin, second = workers.client(token=TOKEN, retries=20), Bundle.load(bundles / "second")
    admin.change_models("load", "second")
    try:
        victims = children(workers)
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        psutil.wait_procs(victims, timeout=10)
        time.sleep(0.1)  # the server sees it too
        begun, asking = time.monotonic(), workers.client(token=TOKEN, retries=0, trims=False)
        with pytest.raises(ServerError, match="being started") as refused:
            asking.rank(stored(last[1]), deadline_ms=50)
        assert refused.value.status == 503
        assert time.monotonic() - begun < 2.0  # its deadline, not a start of seconds
        for one in last[1:9]:
            ranked = admin.rank(stored(one))
            assert ranked.model == second.fingerprint
            assert stacked(ranked).tobytes() == exact(second, one)
    finally:
        admin.change_models("rollback")  # a new worker knows what served before
    assert stacked(admin.rank(stored(last[1]))).tobytes() == last[1].logits.tobytes()


@pytest.mark.soak
def test_a_rollback_while_a_worker_is_started_again_leaves_all_on_one_model(workers, last, bundles):
    admin = workers.client(token=TOKEN, retries=20)
    of = {name: Bundle.load(bundles / name).fingerprint for name in ("first", "second")}
    try:
        admin.change_models("load", "second")
        admin.change_models("load", "second")  # nothing changes, so there is a way back
        for number, wanted in ((0, "first"), (1, "second")):
            os.kill(children(workers)[number].pid, signal.SIGKILL)
            admin.change_models("rollback")
            assert {admin.rank(stored(one)).model for one in last[1:20]} == {of[wanted]}
            said = admin.models()
            assert "disagreeing" not in said
            other = of["second" if wanted == "first" else "first"]
            assert [one["version"] for one in said["models"]] == [of[wanted], other]
    finally:
        admin.change_models("load", "first")


@pytest.mark.soak
def test_a_promotion_while_a_worker_is_started_again_leaves_all_on_one_model(workers, last, bundles):
    admin = workers.client(token=TOKEN, retries=20)
    first, second = started = [Bundle.load(bundles / name).fingerprint for name in ("first", "second")]

    def says(*wanted):
        said = admin.models()
        assert "disagreeing" not in said
        states = [(one["state"], one["version"]) for one in said["models"]]
        assert states == list(zip(("current", "previous", *["shadow"] * (len(wanted) - 2)), wanted, strict=True))

    try:
        for number, action in ((1, "promote"), (0, "stop_shadow"), (0, "promote")):
            admin.change_models("shadow", "second")
            os.kill(children(workers)[number].pid, signal.SIGKILL)
            admin.change_models(action)
            started = [first, second] if action == "stop_shadow" else [second, first]
            assert {admin.rank(stored(one)).model for one in last[1:20]} == {started[0]}
            says(*started)
            if action == "promote":
                admin.change_models("rollback")
    finally:
        admin.change_models("load", "first")


def test_a_worker_without_the_shadow_of_the_others_is_shown_and_nothing_is_promoted(workers, last, bundles):
    admin, first = workers.client(token=TOKEN), Bundle.load(bundles / "first").fingerprint
    addresses = json.loads(admin.get("/v1/workers"))["workers"]
    Client(addresses[1], token=TOKEN).change_models("shadow", "second")
    try:
        assert admin.models()["disagreeing"] == [1]
        with pytest.raises(ServerError, match="the same shadow at all workers required") as refused:
            admin.change_models("promote")
        assert refused.value.status == 409
        admin.change_models("shadow", "second")
        assert "disagreeing" not in admin.models()
    finally:
        admin.change_models("stop_shadow")
    assert {admin.rank(stored(one)).model for one in last[1:20]} == {first}


def test_what_is_published_at_a_watched_place_serves_at_all_workers_and_a_rollback_of_it_stays(workers, last, bundles):
    admin, first = workers.client(token=TOKEN), Bundle.load(bundles / "first").fingerprint
    published = Bundle.load(other_bundle(bundles / "watched", bundles / "second")).fingerprint
    deadline = time.monotonic() + 20
    while {admin.rank(stored(one)).model for one in last[1:20]} != {published}:
        assert time.monotonic() < deadline
    admin.change_models("rollback")
    time.sleep(0.5)  # more than one look
    assert "disagreeing" not in admin.models()
    assert {admin.rank(stored(one)).model for one in last[1:20]} == {first}


def test_the_end_answers_what_was_admitted_and_leaves_no_process(workers, last):
    processes = children(workers)
    answered, refused = [], []

    def ask():
        mine = workers.client(token=TOKEN, retries=0)
        for _ in range(300):
            try:
                answered.append(stacked(mine.rank(stored(last[1]))).tobytes() == last[1].logits.tobytes())
            except ServerError as error:
                refused.append(error.status)
                return

    assert workers.client(token=TOKEN, retries=0).rank(stored(last[1])).model
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    code, log = workers.end()
    for thread in threads:
        thread.join()
    assert code == 0, log
    assert all(answered)
    assert answered
    assert set(refused) <= {0, 503}
    assert TOKEN not in log
    assert "Fatal" not in log
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.soak
def test_tls_ends_at_the_router(bundles, store_file, last, tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    words = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {key} -out {certificate}"
    made = shutil.which("openssl") and subprocess.run(
        [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("needs openssl")
    options = ["--workers", 2, "--tls-certificate", certificate, "--tls-key", key]
    with Server(bundles / "first", "--store", store_file, *options) as server:
        client = server.client(certificates=str(certificate), retries=0)
        assert server.url.startswith("https://")
        assert stacked(client.rank(stored(last[1]))).tobytes() == last[1].logits.tobytes()
