"""Whatever a client sends, or how slowly: an answer that says what is wrong, and the server answers the next one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import time

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reqdedup.serving.server.door import Access, listen
from reqdedup.serving.server.loading import Loader
from reqdedup.serving.server.settings import ServeSettings
from tests.serving.http.servers import stacked

pytestmark = pytest.mark.slow


def talk(server, data: bytes, *, half_close: bool = False) -> bytes:
    """Everything that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
            if b"\r\n\r\n" in b"".join(parts) and not half_close:
                break
        return b"".join(parts)


def post(server, path, body, *, kind="application/json", **headers):
    """Status and parsed body of a POST, without the client's own checks."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    response, data = server.client()._exchange(server.url, path, body, {"content-type": kind, **more})
    return response.status, orjson.loads(data)


@pytest.fixture
def good(table_requests):
    one = next(one for one in table_requests if one.is_last)
    columns = {name: values.tolist() for name, values in one.sent.candidates.items()}
    return one, {"user_id": one.sent.user_id, "candidates": columns}


@pytest.fixture(autouse=True)
def lives(server, good):
    """The server answers with the right bits after each of these tests."""
    yield
    one, values = good
    status, answer = post(server, "/v1/rank", orjson.dumps(values))
    assert status == 200
    assert list(answer["logits"]) == ["click", "save", "long_dwell"]
    assert stacked(server.client().rank(one.sent)).tobytes() == one.logits.tobytes()


def test_values_that_do_not_fit_name_their_column(server, good):
    _, values = good
    num = len(values["candidates"]["item_id"])
    candidates = values["candidates"]
    for path, body, status in (
        ("/v1/rank", {**values, "user_id": 2**63}, 422),
        ("/v1/rank", {**values, "user_id": 2**70}, 422),
        ("/v1/rank", {**values, "candidates": {**candidates, "item_id": [2**64] * num}}, 422),
        ("/v1/rank", {**values, "candidates": {**candidates, "item_id": [1] * 1_000_000}}, 413),
        ("/v1/rank", {**values, "candidates": {**candidates, "item_category": [0.5] * num}}, 422),
        ("/v1/rank", {**values, "candidates": {}}, 422),
        ("/v1/rank", {**values, "request": {"user_embedding": [1, 2, 3]}}, 422),
        ("/v1/rank", {**values, "request": {"hour_of_day": 2**31}}, 422),
        ("/v1/rank", {**values, "at": 10**9}, 422),
        ("/v1/rank", {**values, "version": 99}, 422),
        ("/v1/rank", {**values, "deadline_ms": -1}, 422),
        ("/v1/retrieve", {"user_id": values["user_id"], "k": 0}, 422),
        ("/v1/retrieve", {"user_id": values["user_id"], "k": 3, "filter": {"categories": {"nothing": [1]}}}, 422),
        ("/v1/recommend", {"user_id": values["user_id"], "length": 10**6}, 422),
        ("/v1/events", {"user_id": 1, "events": {}, "idempotency_key": "k"}, 422),
        ("/v1/events", {"user_id": 1, "events": {"item_id": [1], "action": [1]}}, 422),
        ("/v1/models", {"action": "load", "bundle": "/etc"}, 403),
        ("/v1/models", {"action": "explode"}, 422),
        ("/v1/models", {"action": "rollback", "bundle": ["b"]}, 422),
        ("/v1/models", {"action": "promote", "to": {"ranking": "v"}}, 409),
    ):
        found, answer = post(server, path, json.dumps(body).encode())
        assert found == status, (path, answer)
        assert "required" in answer["error"]["message"] or "known" in answer["error"]["message"], answer


def test_no_candidates_are_answered_with_no_logits(server, good):
    _, values = good
    empty = {name: [] for name in values["candidates"]}
    status, answer = post(server, "/v1/rank", orjson.dumps({**values, "candidates": empty}))
    assert (status, answer["logits"]["click"]) == (200, [])


def test_other_bodies_kinds_and_paths_are_a_4xx(server):
    assert post(server, "/v1/rank", b"{}", kind="text/plain")[0] == 415
    assert post(server, "/v1/rank", b"{}", kind="application/x-www-form-urlencoded")[0] == 415
    assert post(server, "/v1/rank", b"\x1f\x8b", content_encoding="gzip")[0] == 415
    assert post(server, "/v1/rank", b"not json")[0] == 400
    assert post(server, "/v1/rank", b"")[0] == 400
    assert post(server, "/v1/rank", b"half an arrow", kind="application/vnd.apache.arrow.stream")[0] == 400
    assert talk(server, b"HEAD /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert talk(server, b"GET /v1/rank HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 405")
    assert talk(server, b"GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 404")
    assert talk(server, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_path_that_is_not_served_is_an_error_in_json_and_no_other_place(server):
    for path, status in (("/nothing", 404), ("/v1/rank/", 404), ("/healthz", 405)):
        found, answer = post(server, path, b"{}")
        assert (found, answer["error"]["column"]) == (status, "path")
        assert answer["error"]["found"] == f"'POST {path}'" or path in answer["error"]["found"]


def test_an_error_names_the_whole_path_of_its_column(server, good):
    one, values = good
    events = {"item_id": [1, 2], "action": [1, 1]}
    for more, column in (
        ({"history": {"columns": events, "start": 5, "end": 3}}, "history.end"),
        ({"history": {"columns": events, "version": -1}}, "history.version"),
        ({"history": {"columns": events, "more": 1}}, "history.more"),
        ({"history": {}}, "history.columns"),
        ({"history": {"columns": events}, "at": 1}, "at"),
        ({"at": 10**9}, "at"),
        ({"version": 99}, "version"),
        ({"user_id": -5}, "request"),
        ({"user_id": -5, "at": 3}, "at"),
        ({"candidates": {"item_id": [10**9]}}, "candidates.item_category"),
    ):
        status, answer = post(server, "/v1/rank", orjson.dumps({**values, **more}))
        assert (status, answer["error"]["column"]) == (422, column), answer
        assert answer["error"]["required"], answer
        assert answer["error"]["found"], answer
    for filter, column in (
        ({"more": 1}, "filter.more"),
        ({"categories": [1]}, "filter.categories"),
        ({"categories": {"more": [1]}}, "filter.categories"),
    ):
        body = {"user_id": one.sent.user_id, "k": 3, "filter": filter}
        status, answer = post(server, "/v1/retrieve", orjson.dumps(body))
        assert (status, answer["error"]["column"]) == (422, column), answer


def test_outputs_of_an_open_inference_call_that_are_no_list_are_refused(server):
    tensors = [
        {"name": name, "shape": [1], "datatype": datatype, "data": [1]}
        for name, datatype in (("user_id", "INT64"), ("item_id", "INT64"), ("item_category", "INT32"))
    ]
    body = {"inputs": tensors, "outputs": 5}
    status, answer = post(server, "/v2/models/ranking/infer", orjson.dumps(body))
    assert (status, answer["error"]["column"]) == (422, "outputs")


def test_another_hosts_name_is_refused_by_a_server_without_a_token(server):
    refused = talk(server, b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 421")


def test_a_body_larger_than_the_limit_is_refused_before_it_came(server):
    head = b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    assert talk(server, head + b"content-length: 100000000\r\n\r\n{").startswith(b"HTTP/1.1 413")


def test_half_a_request_is_dropped(server):
    head = b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    for data in (head[:40], head, head + b'{"user_id": 1'):
        assert talk(server, data, half_close=True)[:10] in (b"", b"HTTP/1.1 4")


def test_a_head_without_an_end_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 10_000_000:
                sent += connection.send(b"x: " + b"y" * 1000 + b"\r\n")
                time.sleep(0.001)
        assert sent < 10_000_000


def test_slow_clients_do_not_keep_others_waiting(server, good):
    one, _ = good
    head = b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(head if number % 2 else head[:30])
        client = server.client()
        started = time.monotonic()
        for _ in range(5):
            assert stacked(client.rank(one.sent)).tobytes() == one.logits.tobytes()
        assert time.monotonic() - started < 5
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.slow
def test_more_than_the_queue_holds_is_refused_with_a_time_to_come_back(server, good):
    """Eight may wait (`--max-waiting`): of 60 at once, some are answered and all others refused with 503."""
    _, values = good
    body = orjson.dumps(values)

    def ask(_):
        client = server.client()
        headers = {"content-type": "application/json"}
        response, data = client._exchange(server.url, "/v1/rank", body, headers)
        return response.status, response.headers.get("retry-after"), data

    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(240)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 8
    assert all(after is not None and int(after) >= 1 for status, after, _ in answers if status == 503)
    logits = {data for status, _, data in answers if status == 200}
    assert len({str(orjson.loads(one)["logits"]) for one in logits}) == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "user_id",
    "request",
    "candidates",
    "history",
    "at",
    "version",
    "deadline_ms",
    "k",
    "filter",
    "events",
    "action",
]


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/v1/rank", "/v1/retrieve", "/v1/recommend", "/v1/events", "/v2/models/ranking/infer"]),
    values=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), anything, max_size=5),
    keeps=st.booleans(),
)
def test_no_object_of_json_is_a_500(server, good, path, values, keeps):
    body = {**good[1], **values} if keeps and path == "/v1/rank" else values
    status, answer = post(server, path, json.dumps(body).encode())
    assert status < 500, answer


def test_metrics_and_the_api_page_need_no_network(server, good):
    client = server.client()
    assert post(server, "/v1/rank", orjson.dumps(good[1]))[0] == 200
    page = client.get("/docs").decode()
    assert "http://" not in page
    assert "https://" not in page
    api = orjson.loads(client.get("/openapi.json"))
    assert set(api["paths"]) >= {"/v1/rank", "/v1/retrieve", "/v1/recommend", "/v1/events", "/metrics"}
    text = client.get("/metrics").decode()
    assert 'reqdedup_requests_total{path="/v1/rank",status="200"}' in text
    for line in text.splitlines():
        assert line.startswith("#") or float(line.rpartition(" ")[2]) >= 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "0.0.0.0"}, "a token required"),
        ({"host": "0.0.0.0", "token": "short"}, "at least 16"),
        ({"certificate": "cert.pem"}, "a certificate and its key"),
        ({"port": 65_536}, "a port from 0 to 65535 required, found 65536"),
        ({"port": -1}, "a port from 0 to 65535 required, found -1"),
    ],
)
def test_a_door_that_others_reach_needs_a_token(options, said):
    with pytest.raises(ValueError, match=said):
        Access(**options)
    assert "secret" not in repr(Access(token="secret-secret-secret"))


def test_files_that_are_no_tls_are_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "notes.md").write_text("no certificate")
    access = Access(port=0, certificate=str(tmp_path / "notes.md"), key=str(tmp_path / "notes.md"))
    with pytest.raises(ValueError, match=r"notes.md: a certificate and its key, PEM, required, found"):
        listen(access)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"device": "tpu"}, "a device cpu or cuda required, found 'tpu'"),
        ({"may_load_from": "/nothing"}, "/nothing: a folder of bundles to load from required, found none"),
    ],
)
def test_a_server_that_cannot_do_what_it_is_told_does_not_begin(told, said):
    with pytest.raises(ValueError, match=said):
        Loader(ServeSettings(bundles=("any",), **told))
