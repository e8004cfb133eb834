"""The router: reads which user a request is of, passes its bytes to that user's worker, and the answer back.

    /metrics                 of all workers, as one text
    /readyz                  ready if all of them are
    /v1/models               what most workers say, and which of them serve, or served before, something else; what
                             a shadow did at all of them
    /v1/models (POST)        one worker after another; the first that cannot leaves the others as they are
                             rollback, promote: all of them, to the models that served before, or run in the shadow, at
                             most workers
    /v1/workers              their addresses, for clients on this machine that route themselves
    everything else          the user's worker; the first one if there is no user in it

A worker whose queue is full is not asked again for a moment: what it said is said to those who come, before their
bodies are read if their user stands in a header. A worker that had to refuse a flood itself would have no time to
compute.

Connections to workers are kept. One that breaks before the answer's head came is answered 503: the worker may have
computed, but nothing was said, and every call but a rollback may be repeated. A worker that is being started again is
waited for as long as the request says that it may wait, its `deadline_ms`, then answered 503 too. A change of models
may take any time, and is said again to a worker that broke off: workers are told what shall serve, so one that took its
siblings' models over meanwhile has nothing left to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import httptools
import orjson

from reqdedup.arrays.hashing import hash_string
from reqdedup.serving.limits import Limits
from reqdedup.serving.names import ARROW, HEADER_LENGTH, JSON, OF_USER, QUEUE_FULL, REQUEST_KEY, is_queued
from reqdedup.serving.requests import RequestError
from reqdedup.serving.routing import worker_of
from reqdedup.serving.scheduler import OverloadedError
from reqdedup.serving.server.door import Receive, Scope, Send, read_body
from reqdedup.serving.server.metrics import CONTENT_TYPE, Labels, Metrics, merged
from reqdedup.serving.server.upstream import Answer, Upstream
from reqdedup.serving.wire.answers import error_response, json_response
from reqdedup.values import shown

TOLD_AGAIN_AFTER_S = (0.1, 0.5, 2.0)
"""A worker that broke off while it was told which models shall serve [seconds]."""


class Router:
    """An ASGI application. addresses: of the workers, by number.  restarts, failed_starts, deaths: of each so far.
    full_for_s: how long a worker that said that its queue is full is not asked again, a tenth of such a queue."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        limits: Limits,
        *,
        restarts: Callable[[], Sequence[int]] = list,
        failed_starts: Callable[[], Sequence[int]] = list,
        deaths: Callable[[], Sequence[int]] = list,
        full_for_s: float = 0.01,
    ) -> None:
        self.limits, self._full_for_s = limits, full_for_s
        self._full: dict[int, tuple[float, Answer]] = {}
        """Of workers whose queue was full: until when they are not asked, and what they said."""
        self._workers = [Upstream(*address, timeout_s=limits.max_deadline_ms / 1000 + 20) for address in addresses]
        self._urls = [f"http://{host}:{port}" for host, port in addresses]
        self._deaths = deaths
        self._answered = [-1] * len(addresses)
        """Deaths of each worker when it answered last: with another number it is not there, or starting."""
        self._telling, self._ended = asyncio.Lock(), {"load": 0, "shadow": 0}
        """Rollbacks, and ends of a shadow: what was being loaded then is not told to the other workers."""
        self.metrics = Metrics()
        self.metrics.describe("reqdedup_router_requests_total", "counter", "Requests passed on, by worker.")
        self.metrics.describe("reqdedup_router_refused_total", "counter", "Requests refused in the place of a worker.")
        self.metrics.describe("reqdedup_router_broken_total", "counter", "Requests whose worker broke off.")
        for name, counts, help in (
            ("restarts", restarts, "Starts of a worker beside its first."),
            ("failed_starts", failed_starts, "Starts of a worker that failed, each tried again."),
        ):
            self.metrics.read(f"reqdedup_worker_{name}_total", "counter", help, partial(_by_worker, counts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except Exception as error:
            await error_response(error)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def load(self, place: str, headers: Sequence[tuple[bytes, bytes]]) -> Answer:
        """One worker after another, as POST /v1/models does. headers: that let one in."""
        head = [*headers, (b"content-type", JSON.encode())]
        scope = {"method": "POST", "raw_path": b"/v1/models", "query_string": b"", "headers": head}
        return await self._change_models(scope, orjson.dumps({"action": "load", "bundle": place}))

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path, method = scope["path"], scope["method"]
        is_get = method in ("GET", "HEAD")
        if path == "/healthz" and is_get:
            return _plain(json_response({"live": True}))
        if path == "/v1/workers" and is_get:
            return _plain(json_response({"workers": self._urls}))
        headers = dict(scope["headers"])
        self.limits.check_said(headers.get(b"content-length", b"").decode("latin-1"))
        named = self._worker_in(headers)
        if named is not None and (refusal := self._refusal(path, named)) is not None:
            return refusal
        body = await read_body(receive, self.limits)
        if path in ("/readyz", "/v2/health/ready", "/metrics") and method == "GET":
            return await self._of_all(scope, path)
        if path == "/v1/models" and method == "POST":
            return await self._change_models(scope, body)
        if path == "/v1/models" and method == "GET":
            return await self._models(scope)
        number = self._worker_of(path, headers, body) if named is None else named
        if named is None and (refusal := self._refusal(path, number)) is not None:
            return refusal
        self.metrics.add("reqdedup_router_requests_total", of_worker=str(number))
        answer = await self._ask(number, scope, body)
        if answer[0] == 503 and any(name == QUEUE_FULL.encode() for name, _ in answer[1]):
            self._full[number] = time.monotonic() + self._full_for_s, answer
        return answer

    def _refusal(self, path: str, number: int) -> Answer | None:
        """What the worker said lately, if that was that its queue is full and this request would wait there."""
        until, said = self._full.get(number, (0.0, None))
        if said is None or not is_queued(path) or time.monotonic() >= until:
            return None
        self.metrics.add("reqdedup_router_refused_total")
        return said

    async def _ask(self, number: int, scope: Scope, body: bytes, *, is_patient: bool = False) -> Answer:
        """Raises OverloadedError, 503, if the worker breaks off, or is not there again in the request's time.

        is_patient: the answer may take any time.
        """
        deaths = dict(enumerate(self._deaths())).get(number, 0)
        is_starting = self._answered[number] != deaths
        try:
            hurries = is_starting and not is_patient
            async with asyncio.timeout(_deadline_s(scope, body, self.limits) if hurries else None):
                answer = await self._workers[number].ask(scope, body, is_patient=is_patient)
            self._answered[number] = deaths
            return answer
        except (OSError, EOFError, httptools.HttpParserError) as error:
            self.metrics.add("reqdedup_router_broken_total")
            found = "that it is being started" if is_starting else type(error).__name__
            raise OverloadedError(f"an answer of worker {number} required, found {found}", 1) from None

    async def _change_models(self, scope: Scope, body: bytes) -> Answer:
        values: Any = None
        with suppress(ValueError):
            values = orjson.loads(body)
        said = values.get("action") if isinstance(values, dict) else None
        action = said if isinstance(said, str) else ""  # the first worker says what is wrong with it
        if action not in ("rollback", "promote", "stop_shadow"):
            async with self._telling:
                ended = dict(self._ended)
            for number in range(len(self._workers)):
                if action in ended and ended[action] != self._ended[action]:
                    same = f"the models to be the same while one is loaded ({action})"
                    raise RequestError("bundle", same, "a change of them", status=409)
                answer = await self._tell(number, scope, body)
                if answer[0] >= 400:
                    break
            return answer
        async with self._telling:
            self._ended["load"] += action == "rollback"
            self._ended["shadow"] += action != "promote"
            if action != "stop_shadow" and values.get("to") is None:
                to = _target(action, await self._said_models(scope))
                body = orjson.dumps(values | ({"to": to} if to else {}))
            answers = []
            for number in range(len(self._workers)):
                answers.append(await self._tell(number, scope, body))
                if action == "promote" and number == 0 and answers[0][0] >= 400:
                    break  # after a load that has come as far as this worker, say: the others stay as they are
        return max(answers, key=lambda answer: answer[0])

    async def _tell(self, number: int, scope: Scope, body: bytes) -> Answer:
        """Again to a worker that breaks off."""
        for wait_s in TOLD_AGAIN_AFTER_S:
            with suppress(OverloadedError):
                return await self._ask(number, scope, body, is_patient=True)
            await asyncio.sleep(wait_s)
        return await self._ask(number, scope, body, is_patient=True)

    async def _models(self, scope: Scope) -> Answer:
        return _plain(json_response(models_of_all(await self._said_models(scope))))

    async def _said_models(self, scope: Scope) -> dict[int, dict[str, Any]]:
        """What `/v1/models` says, by worker: of those that answer now, or of the first, once it does."""
        asking = {**scope, "method": "GET"}
        answers: list[Answer | None] = list(await self._ask_all(asking))
        if not any(answer is not None and answer[0] == 200 for answer in answers):
            answers = [await self._tell(0, asking, b"")]
        return {
            number: orjson.loads(answer[2])
            for number, answer in enumerate(answers)
            if answer is not None and answer[0] == 200
        }

    async def _ask_all(self, scope: Scope) -> list[Answer | None]:
        async def ask(worker: Upstream) -> Answer | None:
            with suppress(OSError, EOFError, TimeoutError, httptools.HttpParserError, OverloadedError):
                return await asyncio.wait_for(worker.ask(scope, b""), 2.0)
            return None

        return list(await asyncio.gather(*(ask(worker) for worker in self._workers)))

    async def _of_all(self, scope: Scope, path: str) -> Answer:
        answers = await self._ask_all(scope)
        if path == "/metrics":
            texts = [answer[2].decode() for answer in answers if answer is not None and answer[0] == 200]
            head = [(b"content-type", CONTENT_TYPE.encode())]
            return 200, head, merged([*texts, self.metrics.text()]).encode()
        num_ready = sum(answer is not None and answer[0] == 200 for answer in answers)
        is_ready = num_ready == len(answers)
        reasons = dict.fromkeys(_reason(number, answer) for number, answer in enumerate(answers))
        reason = "; ".join(one for one in reasons if one)
        said = {"ready": is_ready, "workers": num_ready} | ({"reason": reason} if reason else {})
        return _plain(json_response(said, 200 if is_ready else 503))

    def _worker_in(self, headers: dict[bytes, bytes]) -> int | None:
        """Of the user in our client's header; None if the body has to say."""
        with suppress(ValueError):
            if (said := headers.get(OF_USER.encode())) is not None and -(2**63) <= int(said) < 2**63:
                return worker_of(int(said), len(self._workers))
        return None

    def _worker_of(self, path: str, headers: dict[bytes, bytes], body: bytes) -> int:
        with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
            user_id = _user_of(path, headers, body)
            if -(2**63) <= user_id < 2**63:
                return worker_of(user_id, len(self._workers))
        return 0  # it will say what is wrong with the request


def _versions(said: dict[str, Any], state: str) -> dict[str, str]:
    """By task, of an answer of `/v1/models`."""
    return {one["name"]: one["version"] for one in said["models"] if one["state"] == state}


def _states(said: dict[str, Any]) -> list[dict[str, str]]:
    return [_versions(said, state) for state in ("current", "previous", "shadow")]


def _most(said: dict[int, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """A worker that has what most of them do, the first of these, and what it says."""
    states = [_states(one) for one in said.values()]
    return max(said.items(), key=lambda one: states.count(_states(one[1])))


def models_of_all(said: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What the server says of its models, of what its workers say: the counts of those with the same shadow added up,
    and what any of them is loading, or could not load."""
    _, most = _most(said)
    differ = [number for number, one in said.items() if _states(one) != _states(most)]
    reports = [one["shadow"] for one in said.values() if one["shadow"] and _states(one) == _states(most)]
    shadow = None
    if reports:
        shadow = {name: sum(one[name] for one in reports) for name in ("requests", "equal", "failed")}
        shadow["max_difference"] = max(one["max_difference"] for one in reports)
        shadow["last_error"] = next((one["last_error"] for one in reports if one["last_error"]), "")
    of_any = {name: next((one[name] for one in said.values() if one[name]), None) for name in ("loading", "last_error")}
    return most | of_any | {"shadow": shadow} | ({"disagreeing": differ} if differ else {})


def _target(action: str, said: dict[int, dict[str, Any]]) -> dict[str, str]:
    """Versions by task of what shall serve after a rollback or a promotion; empty if there is nothing.

    Raises RequestError, 409, for a promotion of what not all workers that answer could promote.
    """
    if action == "rollback":
        return _versions(_most(said)[1], "previous")
    have = {number: one for number, one in said.items() if _versions(one, "shadow")}
    to = _versions(_most(have)[1], "shadow") if have else {}
    lacking = [n for n, one in said.items() if to not in (_versions(one, "shadow"), _versions(one, "current"))]
    if to and lacking:
        found = f"another or none at {lacking}; start it again"
        raise RequestError("action", "the same shadow at all workers", found, status=409)
    return to


def _deadline_s(scope: Scope, body: bytes, limits: Limits) -> float:
    """How long a request may wait [seconds]: as it says, else the longest time that one may."""
    with suppress(ValueError, KeyError, TypeError):
        said = float(_envelope(dict(scope["headers"]), body)["deadline_ms"])
        if 0 < said <= limits.max_deadline_ms:
            return said / 1000
    return limits.max_deadline_ms / 1000


def _reason(number: int, answer: Answer | None) -> str:
    """Why a worker is not ready, as it says; empty if nothing is wrong with it."""
    if answer is None:
        return f"worker {number}: no answer"
    with suppress(ValueError, TypeError):
        return str(orjson.loads(answer[2]).get("reason", ""))
    return f"worker {number}: another answer"


def _by_worker(counts: Callable[[], Sequence[int]]) -> dict[Labels, float]:
    return {(("of_worker", str(number)),): float(count) for number, count in enumerate(counts())}


def _plain(response: Any) -> Answer:
    return response.status_code, response.raw_headers, response.body


def _user_of(path: str, headers: dict[bytes, bytes], body: bytes) -> int:
    """The user that a body names. Raises one of several errors if it names none."""
    if path.startswith("/v2/"):
        length = int(headers.get(HEADER_LENGTH.encode(), len(body)))
        place = length
        for tensor in orjson.loads(body[:length])["inputs"]:
            size = tensor.get("parameters", {}).get("binary_data_size")
            if tensor["name"] == "user_id":
                whole = (
                    tensor["data"] if size is None else [int.from_bytes(body[place : place + 8], "little", signed=True)]
                )
                return int(whole[0])
            place += size or 0
        raise KeyError("user_id")
    return _named(_envelope(headers, body))


def _envelope(headers: dict[bytes, bytes], body: bytes) -> dict[str, Any]:
    """What a body says beside its columns. Raises one of several errors if it is neither JSON nor Arrow."""
    if headers.get(b"content-type", b"").startswith(ARROW.encode()):
        import pyarrow as pa  # only for bodies of machines that are not our client

        try:
            with pa.ipc.open_stream(body) as reader:
                return cast(dict[str, Any], orjson.loads((reader.schema.metadata or {})[REQUEST_KEY]))
        except (pa.ArrowException, OSError):  # pyarrow calls a broken message an OSError
            raise ValueError("no Arrow") from None
    return cast(dict[str, Any], orjson.loads(body))


def _named(values: dict[str, Any]) -> int:
    if isinstance(key := values.get("user_key"), str):
        return hash_string(key)
    user_id = values["user_id"]
    if not isinstance(user_id, int):
        raise TypeError(shown(user_id))
    return user_id
