"""The servers that `benchmarks.serving_http` compares; its words are VARIANT LENGTH STORE WAIT_MS
or router URL URL.

fast, deterministic   ours: contexts kept, waiting requests computed together
once                  ours, the context computed once per request and never kept
naive                 ours, the causal transformer over [history ; candidate] once per candidate
by_hand               bare ASGI and `benchmarks.serving_by_hand`: same framework, parser, model and batching
plumbing              ours without a model: a step that has its logits ready
router                in front of servers that run already
bare                  bare ASGI without a model: parses, answers ready logits in the event loop, nothing else
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch

from benchmarks.serving import SCHEMA, OncePerRequest, ranking_model
from benchmarks.serving_by_hand import ServerCore
from benchmarks.serving_http_load import pin
from reqdedup.models.dcat import naive
from reqdedup.models.transforms import Transforms
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import Window
from reqdedup.serving.limits import Limits
from reqdedup.serving.names import REQUEST_KEY
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import Ranked, RankRequest
from reqdedup.serving.scheduler import Scheduler, SchedulerLimits
from reqdedup.serving.server.app import Application, Service
from reqdedup.serving.server.door import Access, listen, run_until_signal
from reqdedup.serving.server.metrics import Metrics
from reqdedup.serving.server.router import Router
from reqdedup.serving.server.swap import Models, Part, Served
from reqdedup.serving.wire.bodies import Inputs

CACHE_BYTES = 2 << 30
STEP_ROWS = SchedulerLimits().max_step_rows


def main() -> None:
    pin(0)
    if sys.argv[1] == "router":
        addresses = [
            (host, int(port)) for host, port in (url.removeprefix("http://").split(":") for url in sys.argv[2:])
        ]
        serve(Router(addresses, Limits()))
        return
    variant, length, store_file, wait_ms = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    torch.set_num_threads(1)
    model = ranking_model(length)
    transforms = Transforms.of(model.config, SCHEMA)
    store = SqliteStore(store_file)
    if variant == "bare":
        app: Any = bare
    elif variant == "by_hand":
        app = ByHand(ServerCore(model), store, transforms)
    else:
        ranker = Ranker(
            model,
            transforms,
            fingerprint=variant,
            store=store,
            deterministic=variant == "deterministic",
            cache=ContextCache(CACHE_BYTES),
        )
        run: Callable[[Sequence[RankRequest]], Sequence[Any]] = ready if variant == "plumbing" else ranker.step
        if variant in ("once", "naive"):
            if variant == "naive":
                ranker.model = naive.DCAT(model.config).eval()
                ranker.model.load_state_dict(model.state_dict())
            run = stored(OncePerRequest(ranker), store, transforms, variant)
        part = Part(task="ranking", bundle="", fingerprint=variant, run=run, inputs=Inputs.of(transforms))
        scheduler = Scheduler(SchedulerLimits(max_wait_ms=wait_ms))
        models = Models(lambda bundle, served: served, Served(parts={"ranking": part}), scheduler)
        service = Service(
            models=models, scheduler=scheduler, limits=Limits(), metrics=Metrics(), store=store, is_ready=True
        )
        app = Application(service)
    serve(app)


def serve(app: Any) -> None:
    door = listen(Access(port=0))
    print(f"http://127.0.0.1:{door.getsockname()[1]}", flush=True)
    run_until_signal(app, Access(), Limits(), [door], drain_s=5)


LOGITS = np.random.default_rng(0).standard_normal(4096).astype(np.float32)


def ready(requests: Sequence[RankRequest]) -> list[Ranked]:
    return [
        Ranked(
            logits={"click": LOGITS[: one.num_candidates]}, model="plumbing", start=0, end=0, version=0, context="kept"
        )
        for one in requests
    ]


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Parse and answer, in JSON or Arrow by the length of what came."""
    body = (await receive())["body"]
    if body.startswith(b"{"):
        logits = LOGITS[: len(orjson.loads(body)["candidates"]["item_id"])]
        said = orjson.dumps({"logits": {"click": logits}}, option=orjson.OPT_SERIALIZE_NUMPY)
    else:
        table = pa.ipc.open_stream(body).read_all()
        orjson.loads(table.schema.metadata[REQUEST_KEY])
        batch = pa.record_batch({"click": pa.array(LOGITS[: table.num_rows])})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        said = sink.getvalue().to_pybytes()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


def stored(
    once: OncePerRequest, store: SqliteStore, transforms: Transforms, name: str
) -> Callable[[Sequence[RankRequest]], list[Ranked]]:
    """The step of a model that takes histories, on those of the store."""

    def run(requests: Sequence[RankRequest]) -> list[Ranked]:
        answers = []
        for request in requests:
            window = window_of(store, transforms, request.user_id, request.at)
            whole = RankRequest(
                user_id=request.user_id, candidates=request.candidates, request=request.request, history=window
            )
            logits = once.step([whole])[0][:, 0].numpy()
            about: dict[str, Any] = {"start": window.start, "end": window.end, "version": window.version}
            answers.append(Ranked(logits={"click": logits}, model=name, context="computed", **about))
        return answers

    return run


def window_of(store: SqliteStore, transforms: Transforms, user_id: int, at: int | None) -> Window:
    def start_of(end: int) -> int:
        return int(transforms.cut.start_of(np.array(end)))

    window = store.window(user_id, ("item_id", "action"), start_of=start_of, at=at)
    assert window is not None
    return window


class ByHand:
    """An ASGI application of forty lines: no checks, no limits, one compute thread that takes what waits."""

    def __init__(self, core: ServerCore, store: SqliteStore, transforms: Transforms) -> None:
        self._core, self._store, self._transforms = core, store, transforms
        self._waiting: deque[tuple[dict[str, Any], Any, Any]] = deque()
        self._came = threading.Event()
        threading.Thread(target=self._compute, daemon=True).start()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/metrics":
            body = f"process_cpu_seconds_total {time.process_time()}\n".encode()
        else:
            message = await receive()
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[Any] = loop.create_future()
            self._waiting.append((orjson.loads(message["body"]), loop, answer))
            self._came.set()
            body = orjson.dumps(await answer, option=orjson.OPT_SERIALIZE_NUMPY)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def _compute(self) -> None:
        while True:
            self._came.wait()
            self._came.clear()
            while self._waiting:
                together: list[tuple[dict[str, Any], Any, Any]] = []
                rows = 0
                while self._waiting:
                    rows += len(self._waiting[0][0]["candidates"]["item_id"])
                    if together and rows > STEP_ROWS:
                        break
                    together.append(self._waiting.popleft())
                logits = self._core.step([self._request(values) for values, _, _ in together])
                for (_, loop, answer), one in zip(together, logits, strict=True):
                    said = {"logits": {"click": one[:, 0].contiguous().numpy()}, "model": "", "start": 0, "end": 0}
                    said |= {"version": 0, "context": "kept", "marks": []}
                    loop.call_soon_threadsafe(answer.set_result, said)

    def _request(self, values: dict[str, Any]) -> RankRequest:
        features = dict(values["request"])
        features["user_embedding"] = np.array(features["user_embedding"], np.float32)
        candidates = values["candidates"]
        return RankRequest(
            user_id=values["user_id"],
            candidates={
                "item_id": np.array(candidates["item_id"], np.int64),
                "item_category": np.array(candidates["item_category"], np.int32),
            },
            request=features,
            history=window_of(self._store, self._transforms, values["user_id"], values["at"]),
        )


if __name__ == "__main__":
    main()
