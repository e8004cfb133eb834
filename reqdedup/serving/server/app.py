"""The HTTP application of one process: bodies in, bodies out, everything else is done by others.

    POST /v1/rank /v1/retrieve /v1/recommend /v1/events        GET /healthz /readyz /metrics /v1/models /docs
    POST /v1/models   load, rollback, shadow, promote           /v2/...  Open Inference Protocol, ranking

The event loop reads, checks and writes; the scheduler's thread computes; a thread of its own appends to the store.
Errors are JSON: {"error": {"message", "column", "required", "found"}}, with a status that says whose fault it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from reqdedup.schema import Column
from reqdedup.sequences.store import KeyTakenError, Store, StoreUnavailableError
from reqdedup.serving.impressions.log import Click, ImpressionLog
from reqdedup.serving.limits import Limits
from reqdedup.serving.names import ARROW, BINARY, HEADER_LENGTH, JSON, TRIMMED_FOR
from reqdedup.serving.requests import Ranked, Recommended, RequestError, Retrieved
from reqdedup.serving.scheduler import LoopAnswer, OverloadedError, Scheduler, Work
from reqdedup.serving.server.administration import Administration
from reqdedup.serving.server.counted import describe_metrics
from reqdedup.serving.server.door import Receive, Scope, Send, read_body
from reqdedup.serving.server.health import StoreHealth
from reqdedup.serving.server.metrics import CONTENT_TYPE, Metrics
from reqdedup.serving.server.openapi import PAGE, openapi
from reqdedup.serving.server.swap import Models, Part, Served
from reqdedup.serving.wire import arrow, bodies, oip
from reqdedup.serving.wire.answers import (
    error_response,
    json_response,
    ranked_answer,
    recommended_answer,
    retrieved_answer,
)
from reqdedup.values import shown

Handler = Callable[[Request], Awaitable[Response]]
MAX_APPENDING = 256
"""Requests whose events wait for the store at once."""


@dataclass(kw_only=True)
class Service:
    """What the application stands on. event_columns: of the store, by name. impressions: log of what is shown.
    bundles, watched, folders: as of `Administration`.  needs_store: whether requests are refused while the store does
    not answer, so that the server is not ready."""

    models: Models
    scheduler: Scheduler
    limits: Limits
    metrics: Metrics
    store: Store | None = None
    event_columns: Mapping[str, Column] | None = None
    impressions: ImpressionLog | None = None
    bundles: Path | None = None
    watched: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    needs_store: bool = True
    is_ready: bool = False


class Application:
    """An ASGI application; the token and the hosts are checked around it (`door.Guard`). Calls without a variable in
    their path are found by it: Starlette's routes and middleware cost as much as reading the body."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._appending, self._num_appending = ThreadPoolExecutor(1, thread_name_prefix="append"), 0
        self._administration = Administration(
            service.models, bundles=service.bundles, watched=service.watched, folders=service.folders
        )
        self._store_health = StoreHealth(service.store)
        describe_metrics(service.metrics, service.scheduler, service.models, service.impressions)
        posts = {
            "/v1/rank": self.rank,
            "/v1/retrieve": self.retrieve,
            "/v1/recommend": self.recommend,
            "/v1/events": self.events,
            "/v1/models": self.change_models,
            "/v2/models/{model}/infer": self.infer,
            "/v2/models/{model}/versions/{version}/infer": self.infer,
        }
        gets = {
            "/healthz": self.health,
            "/readyz": self.ready,
            "/metrics": self.write_metrics,
            "/v1/models": self.show_models,
            "/openapi.json": self.openapi,
            "/docs": self.docs,
            "/v2": self.oip_server,
            "/v2/health/live": self.health,
            "/v2/health/ready": self.ready,
            "/v2/models/{model}": self.oip_model,
            "/v2/models/{model}/ready": self.ready,
            "/v2/models/{model}/versions/{version}": self.oip_model,
            "/v2/models/{model}/versions/{version}/ready": self.ready,
        }
        self._posts = {path: self._answering(path, handler) for path, handler in posts.items()}
        routes = [Route(path, handler, methods=["POST"]) for path, handler in self._posts.items()]
        routes += [Route(path, self._answering(path, handler), methods=["GET"]) for path, handler in gets.items()]
        self._others = Starlette(routes=routes, exception_handlers={404: self._no_path, 405: self._no_path})
        self._routes = routes
        self._others.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self._others(scope, receive, send)
        else:
            response = await handler(Request(scope, receive))
            await response(scope, receive, send)

    def close(self) -> None:
        """Finish what waits and take no more."""
        self.service.is_ready = False
        self.service.scheduler.close()
        self._appending.shutdown(wait=False, cancel_futures=True)
        self._administration.close()
        self._store_health.close()

    def _answering(self, path: str, handler: Handler) -> Handler:
        """The handler with its errors as answers, counted and timed."""
        metrics = self.service.metrics

        async def answer(request: Request) -> Response:
            started = time.monotonic()
            try:
                response = await handler(request)
            except Exception as error:
                if isinstance(error, StoreUnavailableError):
                    self._store_health.say(error)
                response = error_response(error)
            metrics.add("reqdedup_requests_total", path=path, status=str(response.status_code))
            metrics.observe("reqdedup_request_seconds", time.monotonic() - started, path=path)
            return response

        return answer

    async def rank(self, request: Request) -> Response:
        self.service.scheduler.refuse_if_full()
        part, limits = self._part("ranking"), self.service.limits
        kind = content_type(request, JSON, ARROW)
        self._check_trimmed(request, part)
        body = await self._body(request)
        if kind == ARROW:
            asked = arrow.rank_request_of(body, part.inputs, limits)
        else:
            asked = bodies.rank_request(bodies.parse_object(body), part.inputs, limits)
        ranked = await self._ranked(part, asked)
        accept = header(request, b"accept") or ""
        wants_arrow = ARROW in accept or (kind == ARROW and JSON not in accept)
        if wants_arrow:
            return Response(arrow.ranked_body(ranked), media_type=ARROW)
        return json_response(ranked_answer(ranked))

    async def retrieve(self, request: Request) -> Response:
        self.service.scheduler.refuse_if_full()
        part = self._part("retrieval")
        content_type(request, JSON)
        self._check_trimmed(request, part)
        values = bodies.parse_object(await self._body(request))
        asked = bodies.retrieve_request(values, part.inputs, self.service.limits)
        retrieved: Retrieved = await self._computed(part.run, asked, rows=1)
        answer = retrieved_answer(retrieved)
        keys = part.keys_of(retrieved.item_id)
        return json_response(answer if keys is None else {**answer, "item_key": keys})

    async def recommend(self, request: Request) -> Response:
        self.service.scheduler.refuse_if_full()
        served = self.service.models.current  # read once: a swap may come at any time
        retrieval, ranking = self._part("retrieval", served), self._part("ranking", served)
        if served.recommend is None:
            raise RequestError("path", "a server with a funnel", "one without", status=404)
        content_type(request, JSON)
        self._check_trimmed(request, retrieval, ranking)
        values = bodies.parse_object(await self._body(request))
        asked = bodies.recommend_request(values, retrieval.inputs | ranking.inputs, self.service.limits)
        recommended: Recommended = await self._computed(served.recommend, asked, rows=served.rows)
        self.service.models.compare_slate(asked.request, recommended)
        return json_response(recommended_answer(recommended))

    async def events(self, request: Request) -> Response:
        store, columns = self.service.store, self.service.event_columns
        if store is None or columns is None:
            raise RequestError("path", "a server with a store", "one without", status=404)
        content_type(request, JSON)
        values = bodies.parse_object(await self._body(request))
        if (key_sent := header(request, b"idempotency-key")) is not None:
            values.setdefault("idempotency_key", key_sent)
        of = bodies.shown_request(values)
        read = [part.inputs for part in self.service.models.current.parts.values()]
        keys = bodies.Inputs(
            items=next((one.items for one in read if one.item_keys), None), user_keys=any(one.user_keys for one in read)
        )
        user_id, events, key = bodies.events_request(values, columns, self.service.limits, keys)
        if of is not None and self.service.impressions is None:
            raise RequestError("request_id", "a server that logs impressions", "one that does not")
        ranking = self.service.models.current.parts.get("ranking")
        if of is not None and ranking is not None and (unknown := [x for x in of.labels if x not in ranking.labels]):
            raise RequestError("labels", f"labels of the model: {', '.join(ranking.labels)}", shown(unknown[0]))
        if self._num_appending >= MAX_APPENDING:
            raise OverloadedError(f"at most {MAX_APPENDING} appends that wait required, found as many", 1)
        append = asyncio.get_running_loop().run_in_executor(
            self._appending, lambda: store.append(user_id, events, key=key)
        )
        self._num_appending += 1
        append.add_done_callback(self._appended)
        try:
            end = await append
        except KeyTakenError:
            raise RequestError(
                "idempotency_key", "a key that no other user's events had", shown(key), status=409
            ) from None
        if of is not None and self.service.impressions is not None:
            event_ts = of.event_ts(time.time_ns() // 1000)
            for item_id in events["item_id"].tolist():
                for label in of.labels:
                    self.service.impressions.click(
                        Click(
                            request_id=of.request_id, user_id=user_id, item_id=item_id, event_ts=event_ts, label=label
                        )
                    )
        return json_response({"user_id": user_id, "history_end": end.end, "timeline_version": end.version})

    def _appended(self, append: asyncio.Future[Any]) -> None:
        self._num_appending -= 1

    async def infer(self, request: Request) -> Response:
        self.service.scheduler.refuse_if_full()
        part = self._named(request)
        content_type(request, JSON, BINARY)
        length = header(request, HEADER_LENGTH.encode())
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 12):
            raise RequestError(HEADER_LENGTH, "a number of bytes", shown(length), status=400)
        body = await self._body(request)
        asked, request_id, wanted = oip.rank_request_of(
            body, int(length) if length is not None else None, part.inputs, self.service.limits
        )
        outputs = wanted.of(part.labels)
        ranked = await self._ranked(part, asked)
        answer, head = oip.ranked_body(ranked, part.task, request_id, outputs)
        if head is None:
            return Response(answer, media_type=JSON)
        return Response(answer, media_type=BINARY, headers={HEADER_LENGTH: str(head)})

    async def change_models(self, request: Request) -> Response:
        content_type(request, JSON)
        return json_response(await self._administration.change(bodies.parse_object(await self._body(request))))

    async def show_models(self, request: Request) -> Response:
        return json_response(self._administration.describe())

    async def health(self, request: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        if "model" in request.path_params:
            self._named(request)
        failure = await self._store_health.failure()
        is_ready = self.service.is_ready and (failure is None or not self.service.needs_store)
        reason = f"store: {failure}" if failure else "" if is_ready else "the server is shutting down"
        return json_response({"ready": is_ready} | ({"reason": reason} if reason else {}), 200 if is_ready else 503)

    async def write_metrics(self, request: Request) -> Response:
        return Response(self.service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return json_response(openapi(self.service.models.current, self.service.limits, self.service.event_columns))

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(
            PAGE, headers={"content-security-policy": "default-src 'self' 'unsafe-inline'; img-src data:"}
        )

    async def oip_server(self, request: Request) -> Response:
        return json_response({"name": "reqdedup", "version": "2", "extensions": ["binary_tensor_data"]})

    async def oip_model(self, request: Request) -> Response:
        part = self._named(request)
        return json_response(oip.metadata(part.task, [part.fingerprint], part.inputs, list(part.labels)))

    async def _no_path(self, request: Request, error: Exception) -> Response:
        """A path, or a method of one, that is not served."""
        path, status = request.url.path, getattr(error, "status_code", 404)
        found = f"{request.method} {shown(path)}"
        response = error_response(RequestError("path", "a call that /docs shows", found, status=status))
        if status == 405:
            served = [route.methods or set() for route in self._routes if route.path_regex.match(path)]
            response.headers["allow"] = ", ".join(sorted(set().union(*served)))
        return response

    def _named(self, request: Request) -> Part:
        """The model of a path of the Open Inference Protocol, in the version that it names, if it names one."""
        part = self._part("ranking")
        asked = {"version": part.fingerprint, **request.path_params}
        for name, served in (("model", part.task), ("version", part.fingerprint)):
            if asked[name] != served:
                raise RequestError(name, served, shown(asked[name]), status=404)
        return part

    def _check_trimmed(self, request: Request, *parts: Part) -> None:
        """A body that was trimmed for another version may lack what this one reads."""
        sent = header(request, TRIMMED_FOR.encode())
        if sent is not None and sent != (serving := ",".join(part.fingerprint for part in parts)):
            raise RequestError(TRIMMED_FOR, serving, shown(sent), status=412)

    def _part(self, task: str, served: Served | None = None) -> Part:
        """Of what serves now: the request keeps it to its answer."""
        served = served or self.service.models.current
        part = served.parts.get(task)
        if part is None:
            there = ", ".join(served.parts)
            raise RequestError("path", f"a server with a bundle of {task}", f"one with {there}", status=404)
        return part

    async def _ranked(self, part: Part, asked: bodies.Asked) -> Ranked:
        ranked: Ranked = await self._computed(part.run, asked, rows=asked.request.num_candidates, group=part)
        self.service.models.compare(asked.request, ranked)
        return ranked

    async def _computed(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        asked: bodies.Asked,
        *,
        rows: int,
        group: Part | None = None,
    ) -> Any:
        """The answer. group: whose requests are computed together, so that they may share a step."""
        metrics = self.service.metrics
        if asked.dropped:
            metrics.add("reqdedup_dropped_columns_total", len(asked.dropped))
        if asked.num_unknown:
            metrics.add("reqdedup_unknown_keys_total", asked.num_unknown)
        deadline = time.monotonic() + asked.deadline_ms / 1000
        waited = LoopAnswer()
        owner = object() if group is None else group
        work = Work(group=owner, run=run, request=asked.request, rows=rows, deadline=deadline, answer=waited)
        self.service.scheduler.submit(work)
        answer = await waited.future
        context = getattr(answer, "context", None)
        if context is not None:
            metrics.add("reqdedup_contexts_total", origin=context)
        for mark in getattr(answer, "marks", ()):
            metrics.add("reqdedup_marked_answers_total", mark=mark)
        return answer

    async def _body(self, request: Request) -> bytes:
        """All of it, within its limits of bytes and time."""
        limits = self.service.limits
        limits.check_said(header(request, b"content-length") or "")
        if (encoding := header(request, b"content-encoding")) is not None:
            raise RequestError("content-encoding", "a body as it is", shown(encoding), status=415)
        return await read_body(request.receive, limits)


def header(request: Request, name: bytes) -> str | None:
    """Of lower-case name, without Starlette's copy of all of them."""
    headers = request.scope.get("headers_by_name")
    if headers is None:
        headers = request.scope["headers_by_name"] = dict(request.scope["headers"])
    found: bytes | None = headers.get(name)
    return None if found is None else found.decode("latin-1")


def content_type(request: Request, *allowed: str) -> str:
    """Which of these the body is. Raises RequestError (415) for another."""
    found = (header(request, b"content-type") or "").partition(";")[0].strip().lower()
    if found not in allowed:
        raise RequestError("content-type", " or ".join(allowed), shown(found) if found else "none", status=415)
    return found
