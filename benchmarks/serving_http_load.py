"""A light client in a process of its own: bodies sent over kept connections, one after the other or at their times.

It reads heads and lengths and leaves answers unread, so that one core can offer what a server cannot answer. Closed
loop: as many connections as are named, each sends the next body once its answer came. Open loop: a body leaves at its
time, whatever became of those before; a connection that is free takes it, or a new one. The times are a Poisson
process of a fixed seed.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import uvloop

from reqdedup.serving.names import JSON, OF_USER, REQUEST_KEY
from reqdedup.serving.requests import RankRequest


@dataclass(frozen=True)
class Answers:
    """Of one load, in the order sent. status: 0 if the connection broke.  ms: from the time due to the answer.
    seconds: from the first due time to the last answer."""

    status: np.ndarray
    ms: np.ndarray
    seconds: float

    @property
    def answered_ms(self) -> np.ndarray:
        return self.ms[self.status == 200]

    @property
    def refused(self) -> int:
        return int((self.status == 503).sum())


class LoadClient:
    """The client's process, on the machine's last core if it has several. Use it as a context."""

    def __init__(self) -> None:
        spawned = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=spawned, initializer=_begin)

    def closed(self, url: str, requests: Sequence[bytes], connections: int) -> Answers:
        """Raises RuntimeError for anything but 200."""
        answers: Answers = self._pool.submit(_run, url, requests, connections, 0.0).result()
        if (answers.status != 200).any():
            raise RuntimeError(f"answers of status 200 required, found {np.unique(answers.status).tolist()}")
        return answers

    def open(self, url: str, requests: Sequence[bytes], rate: float) -> Answers:
        """Raises RuntimeError for anything but 200 and 503."""
        answers: Answers = self._pool.submit(_run, url, requests, 0, rate).result()
        if not np.isin(answers.status, (200, 503)).all():
            raise RuntimeError(f"answers of status 200 or 503 required, found {np.unique(answers.status).tolist()}")
        return answers

    def __enter__(self) -> LoadClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()


def _begin() -> None:
    """On a core of its own, and without full garbage collections, which would hold back what is due meanwhile."""
    pin(-1)
    gc.freeze()


def pin(core: int) -> None:
    """This process on one of the machine's cores, by its place among those allowed; nothing if there is one only."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > 1:
        os.sched_setaffinity(0, {allowed[core]})


def http_request(request: RankRequest, kind: str = JSON, *, names_user: bool = False) -> bytes:
    """Head and body. names_user: in a header, as our client does for the router."""
    body = json_body(request) if kind == JSON else arrow_body(request)
    more = f"{OF_USER}: {request.user_id}\r\n" if names_user else ""
    head = f"POST /v1/rank HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n{more}content-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def json_body(request: RankRequest) -> bytes:
    return orjson.dumps(
        {**_envelope(request), "request": dict(request.request), "candidates": dict(request.candidates)},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def arrow_body(request: RankRequest) -> bytes:
    envelope = orjson.dumps({**_envelope(request), "request": dict(request.request)}, option=orjson.OPT_SERIALIZE_NUMPY)
    batch = pa.record_batch({name: pa.array(column) for name, column in request.candidates.items()})
    batch = batch.replace_schema_metadata({REQUEST_KEY: envelope})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _envelope(request: RankRequest) -> dict[str, int]:
    return {"user_id": request.user_id} | ({} if request.at is None else {"at": request.at})


def _run(url: str, requests: Sequence[bytes], connections: int, rate: float) -> Answers:
    return uvloop.run(_load(url, requests, connections, rate))


async def _load(url: str, requests: Sequence[bytes], connections: int, rate: float) -> Answers:
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    status, ms = np.zeros(len(requests), np.int32), np.zeros(len(requests))
    idle: list[_Connection] = []
    ended = loop.create_future()
    left = len(requests)

    async def ask(number: int, due: float) -> None:
        nonlocal left
        try:
            if idle:
                connection = idle.pop()
            else:
                _, connection = await loop.create_connection(_Connection, host, int(port))
            status[number] = await connection.exchange(requests[number])
            idle.append(connection)
        except OSError:
            status[number] = 0
        ms[number] = 1000 * (time.monotonic() - due)
        left -= 1
        if not left:
            ended.set_result(None)

    started = time.monotonic()
    if rate:
        tasks = set()
        times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, len(requests)))
        for number, after in enumerate(times.tolist()):
            due = started + after
            while (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            tasks.add(asyncio.create_task(ask(number, due)))
            if number % 16 == 0:
                await asyncio.sleep(0)
        await ended
    else:
        numbers = iter(range(len(requests)))

        async def one_after_the_other() -> None:
            for number in numbers:
                await ask(number, time.monotonic())

        await asyncio.gather(*(one_after_the_other() for _ in range(connections)))
    took = time.monotonic() - started
    for connection in idle:
        connection.transport.close()
    return Answers(status, ms, took)


class _Connection(asyncio.Protocol):
    """One request at a time; what comes is read as far as its length."""

    transport: asyncio.Transport
    _answer: asyncio.Future[int]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio names the base, a stream's can write
        self._found = b""

    def exchange(self, request: bytes) -> asyncio.Future[int]:
        self._found = b""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._found += data
        end = self._found.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._found[:end].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(self._found) >= end + 4 + length:
            self._answer.set_result(int(head.split(b" ", 2)[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before its answer"))
