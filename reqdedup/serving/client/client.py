"""A Python client of the server: the same requests and answers as in process, over JSON or Arrow.

    client = Client("http://127.0.0.1:8080")
    ranked = client.rank(RankRequest(user_id=7, candidates={"item_id": item_id_M}))     # ranked.logits["click"] [M]

Only the standard library speaks HTTP here; connections are kept, one a thread and server. A server that is full (503)
is asked again after the time that it says, `retries` times; so is one that broke off, since calls may be repeated:
events carry a key. A rollback alone may not, which would undo itself. Columns that the server's models do not read are
not sent (`Trimmer`); `direct` sends each user to the worker process that holds their context, and leaves the router
out.
"""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import orjson

from reqdedup.sequences.store import TimelineEnd, Window
from reqdedup.serving.client.trimmer import Trimmer, allowlist
from reqdedup.serving.names import ANSWER_KEY, ARROW, JSON, OF_USER, REQUEST_KEY, TRIMMED_FOR
from reqdedup.serving.requests import Ranked, RankRequest, RecommendRequest, Retrieved, RetrieveRequest
from reqdedup.serving.routing import worker_of

LOOK_AGAIN_S = 30.0
"""How long the client believes what it heard about the server's models and workers [seconds]."""


class ServerError(RuntimeError):
    """What was answered instead. status: of HTTP, 0 if nothing came.  column: of the request, if one was wrong."""

    def __init__(self, status: int, message: str, column: str | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.column = status, column


class Client:
    """Safe to use from several threads.

    body: of rank requests.  retries: after a 503 or a broken connection.  timeout_s: of one attempt.
    trims: leave out what the server's models do not read.  direct: speak to the workers themselves; on their machine.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        token: str | None = None,
        body: Literal["json", "arrow"] = "json",
        retries: int = 3,
        timeout_s: float = 30.0,
        trims: bool = True,
        direct: bool = False,
        certificates: str | None = None,
    ) -> None:
        """certificates: PEM file of those to trust, in the place of the system's. Raises ValueError for what is no
        server's URL or no kind of body."""
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"client: a URL as http://127.0.0.1:8080 required, found {url!r}")
        if body not in ("json", "arrow"):
            raise ValueError(f"client: body json or arrow required, found {body!r}")
        self._url, self._body, self._retries, self._timeout_s = url.rstrip("/"), body, retries, timeout_s
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._tls = ssl.create_default_context(cafile=certificates) if url.startswith("https") else None
        self._trims, self._direct = trims, direct
        self._local = threading.local()
        self.trimmer = Trimmer(None)
        self._versions: dict[str, str] = {}
        self._workers: list[str] = []
        self._looked = -float("inf")

    def rank(self, request: RankRequest, *, deadline_ms: float | None = None) -> Ranked:
        """Raises ServerError if there is no answer."""
        if self._body == "arrow":

            def body() -> bytes:
                candidates = self._trimmed(request.candidates, "ranking")
                return _arrow(self._envelope(request, deadline_ms, "ranking"), candidates)

            return _ranked_arrow(self._trimmed_call(request.user_id, "/v1/rank", body, ARROW, "ranking"))

        def values() -> bytes:
            candidates = dict(self._trimmed(request.candidates, "ranking"))
            return _dumps({**self._envelope(request, deadline_ms, "ranking"), "candidates": candidates})

        answer = orjson.loads(self._trimmed_call(request.user_id, "/v1/rank", values, JSON, "ranking"))
        logits = {name: np.array(one, np.float64).astype(np.float32) for name, one in answer.pop("logits").items()}
        return Ranked(**{**answer, "marks": tuple(answer["marks"])}, logits=logits)

    def retrieve(self, request: RetrieveRequest, *, deadline_ms: float | None = None) -> Retrieved:
        def body() -> bytes:
            more = {"k": request.k, "filter": _filter(request)}
            return _dumps(self._envelope(request, deadline_ms, "retrieval") | more)

        answer = orjson.loads(self._trimmed_call(request.user_id, "/v1/retrieve", body, JSON, "retrieval"))
        answer.pop("item_key", None)
        answer["item_id"] = np.array(answer["item_id"], np.int64)
        answer["score"] = np.array(answer["score"], np.float64).astype(np.float32)
        return Retrieved(**{**answer, "marks": tuple(answer["marks"])})

    def recommend(self, request: RecommendRequest, *, deadline_ms: float | None = None) -> dict[str, Any]:
        """The answer as it comes: see docs/serving.md."""

        def body() -> bytes:
            values = self._envelope(request, deadline_ms, "retrieval", "ranking")
            values |= {"filter": _filter(request), "explain": request.explains}
            return _dumps(values | ({} if request.length is None else {"length": request.length}))

        answer = self._trimmed_call(request.user_id, "/v1/recommend", body, JSON, "retrieval", "ranking")
        found: dict[str, Any] = orjson.loads(answer)
        return found

    def append(
        self,
        user_id: int,
        events: Mapping[str, np.ndarray],
        *,
        key: str,
        request_id: str | int | None = None,
        labels: Sequence[str] = (),
        event_ts: int | None = None,
    ) -> TimelineEnd:
        """Events at the end of the user's timeline; a key that came before changes nothing.

        request_id: of the answer that showed the items.  labels: that the events give to them.
        event_ts: when they happened [microseconds since 1970]; None: now.
        """
        values = {"user_id": user_id, "events": dict(events), "idempotency_key": key}
        shown: dict[str, Any] = {"request_id": request_id, "labels": list(labels) or None, "event_ts": event_ts}
        values |= {name: value for name, value in shown.items() if value is not None}
        answer = orjson.loads(self._call(user_id, "/v1/events", _dumps(values)))
        return TimelineEnd(version=answer["timeline_version"], end=answer["history_end"])

    def models(self) -> dict[str, Any]:
        """What serves, served before, or runs in the shadow."""
        found: dict[str, Any] = orjson.loads(self.get("/v1/models"))
        return found

    def change_models(self, action: str, bundle: str | None = None) -> dict[str, Any]:
        """load or shadow a bundle; rollback, promote, stop_shadow. Loading may take longer than `timeout_s` of a client
        that only asks."""
        values = {"action": action} | ({"bundle": bundle} if bundle else {})
        retries = self._retries
        if action == "rollback":
            retries = 0
            self.close()  # a connection that was kept is tried again if it breaks
        found: dict[str, Any] = orjson.loads(self._call(None, "/v1/models", _dumps(values), retries=retries))
        self._looked = -float("inf")
        return found

    def get(self, path: str) -> bytes:
        """The body of `/metrics` or another path."""
        return self._call(None, path, None)

    def close(self) -> None:
        """Close this thread's connections."""
        for connection in vars(self._local).pop("connections", {}).values():
            connection.close()

    def _envelope(
        self, request: RankRequest | RetrieveRequest | RecommendRequest, deadline_ms: float | None, *models: str
    ) -> dict[str, Any]:
        features = {name: value for model in models for name, value in self._trimmed(request.request, model).items()}
        values: dict[str, Any] = {"user_id": request.user_id, "request": features}
        known = {"at": request.at, "version": request.version, "deadline_ms": deadline_ms}
        values |= {name: value for name, value in known.items() if value is not None}
        if request.history is not None:
            values["history"] = _window(request.history)
        return values

    def _trimmed(self, columns: Mapping[str, Any], model: str) -> Mapping[str, Any]:
        trims = getattr(self._local, "trims", self._trims)
        return self.trimmer.trim(columns, model, self._versions.get(model, "")) if trims else columns

    def _trimmed_call(self, user_id: int, path: str, body: Callable[[], bytes], kind: str, *models: str) -> bytes:
        """The body says for which versions it was trimmed; if others serve by now, it is made again for those, and at
        last untrimmed: workers may serve different ones for a while."""
        for attempt in range(3):
            self._local.trims = trims = self._trims and attempt < 2
            if trims:
                self._look()
            versions = ",".join(self._versions.get(model, "") for model in models)
            headers = {TRIMMED_FOR: versions} if trims else {}
            try:
                return self._call(user_id, path, body(), kind, headers)
            except ServerError as error:
                if error.status != 412 or attempt == 2:
                    raise
                self._looked = -float("inf")
        raise AssertionError("the last attempt returns or raises")

    def _look(self) -> None:
        """Hear about models and workers, now and then."""
        if time.monotonic() - self._looked < LOOK_AGAIN_S:
            return
        self._looked = time.monotonic()
        models = self.models()["models"]
        states = {"current": "current", "previous": "pending", "shadow": "pending"}
        versions: dict[str, dict[str, tuple[str, list[str], str]]] = {}
        for one in models:
            known = versions.setdefault(one["name"], {})
            known.setdefault(one["version"], (one["version"], one["inputs"], states[one["state"]]))
        self.trimmer.replace("server", allowlist({name: known.values() for name, known in versions.items()}))
        self._versions = {one["name"]: one["version"] for one in models if one["state"] == "current"}
        if self._direct:
            self._workers = orjson.loads(self.get("/v1/workers"))["workers"]

    def _call(
        self,
        user_id: int | None,
        path: str,
        body: bytes | None,
        kind: str = JSON,
        more_headers: Mapping[str, str] | None = None,
        *,
        retries: int | None = None,
    ) -> bytes:
        retries = self._retries if retries is None else retries
        headers = {**self._headers, **(more_headers or {})}
        if body is not None:
            headers["content-type"] = kind
        if user_id is not None:
            headers[OF_USER] = str(user_id)
        for attempt in range(retries + 1):
            is_last = attempt == retries
            workers = self._workers if user_id is not None else []
            url = workers[worker_of(user_id, len(workers))] if workers and user_id is not None else self._url
            try:
                response, data = self._exchange(url, path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                if is_last:
                    message = f"an answer of {url} required, found {type(error).__name__}: {error}"
                    raise ServerError(0, message) from error
                time.sleep(0.05 * 2**attempt * (1 + random.random()))
                continue
            if response.status == 503 and not is_last:
                time.sleep(float(response.headers.get("retry-after", "1")) * (0.5 + random.random()))
                continue
            if response.status >= 400:
                raise _error(response.status, data)
            return data
        raise AssertionError("the last attempt returns or raises")

    def _exchange(
        self, url: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connections = vars(self._local).setdefault("connections", {})
        is_kept = url in connections
        connection = connections.get(url) or connections.setdefault(url, self._connect(url))
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            return response, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            del connections[url]
            if is_kept:  # the server may have closed it while it was idle
                return self._exchange(url, path, body, headers)
            raise

    def _connect(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        host = parts.hostname or "127.0.0.1"
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, parts.port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, parts.port, timeout=self._timeout_s)


def _dumps(values: Mapping[str, Any]) -> bytes:
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY, default=np.ndarray.tolist)  # of slices


def _window(window: Window) -> dict[str, Any]:
    return {"columns": dict(window.columns), "start": window.start, "end": window.end, "version": window.version}


def _filter(request: RetrieveRequest | RecommendRequest) -> dict[str, Any]:
    found = {"allow": request.filter.allow, "deny": request.filter.deny}
    values: dict[str, Any] = {name: ids for name, ids in found.items() if ids is not None}
    if request.filter.unseen:
        values["unseen"] = True
    return values | ({"categories": dict(request.filter.categories)} if request.filter.categories else {})


def _arrow(values: Mapping[str, Any], candidates: Mapping[str, np.ndarray]) -> bytes:
    import pyarrow as pa  # only for this body

    columns = {name: pa.array(np.asarray(one)) for name, one in candidates.items()}
    metadata = {REQUEST_KEY: orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)}
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _ranked_arrow(data: bytes) -> Ranked:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as reader:
        batch = reader.read_next_batch()
        said = orjson.loads(reader.schema.metadata[ANSWER_KEY])
    logits = {name: batch[name].to_numpy() for name in batch.schema.names}
    return Ranked(**{**said, "marks": tuple(said["marks"])}, logits=logits)


def _error(status: int, data: bytes) -> ServerError:
    try:
        error = orjson.loads(data)["error"]
        return ServerError(status, error["message"], error.get("column"))
    except (ValueError, KeyError, TypeError):
        return ServerError(status, data[:200].decode("utf-8", "replace"))
