"""Kept connections from the router to a worker: a request's bytes there, its answer's back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import httptools

from reqdedup.serving.names import OF_USER
from reqdedup.serving.scheduler import OverloadedError

Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]
"""Status, head and body."""
MAX_IN_FLIGHT = 256
"""Requests that one worker may be asked at once; its own queue is shorter."""
_NOT_PASSED_ON = (b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"expect", OF_USER.encode())
_NOT_PASSED_BACK = (b"connection", b"keep-alive", b"transfer-encoding", b"date")  # of this server, not of the worker's


class Upstream:
    """Kept connections to one worker."""

    def __init__(self, host: str, port: int, *, timeout_s: float) -> None:
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._idle: list[_Connection] = []
        self._in_flight = 0

    async def ask(self, scope: Mapping[str, Any], body: bytes, *, is_patient: bool = False) -> Answer:
        """Raises OSError or EOFError if the worker breaks off, OverloadedError if it is asked too much already."""
        if self._in_flight >= MAX_IN_FLIGHT:
            raise OverloadedError(f"at most {MAX_IN_FLIGHT} requests at a worker required, found as many", 1)
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        lines = [scope["method"].encode() + b" " + target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in scope["headers"] if name not in _NOT_PASSED_ON]
        lines += [b"content-length: %d" % len(body), b"", body]
        request = b"\r\n".join(lines)
        self._in_flight += 1
        try:
            async with asyncio.timeout(None if is_patient else self._timeout_s):
                while self._idle:
                    connection = self._idle.pop()
                    if connection.is_open:
                        break
                else:
                    loop = asyncio.get_running_loop()
                    _, connection = await loop.create_connection(_Connection, self._host, self._port)
                answer = await connection.exchange(request, has_body=scope["method"] != "HEAD")
            if connection.is_open:
                self._idle.append(connection)
            return answer
        finally:
            self._in_flight -= 1


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # uvloop's is no subclass of it
        self._answer: asyncio.Future[Answer] | None = None

    async def exchange(self, request: bytes, *, has_body: bool = True) -> Answer:
        """The answer; without has_body its head, whatever length that announces."""
        self._has_body = has_body
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        except BaseException:  # cancelled: what comes now belongs to nobody
            self.is_open = False
            self._transport.abort()
            raise

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, AttributeError) as error:
            self._break(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(exc or EOFError("the connection was closed"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in _NOT_PASSED_BACK:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self._has_body:
            self.on_message_complete(keeps_open=False)  # the parser waits for a body: it cannot read another answer

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self, *, keeps_open: bool = True) -> None:
        if not (keeps_open and self._parser.should_keep_alive()):
            self.is_open = False
            self._transport.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), self._headers, b"".join(self._parts)))

    def _break(self, error: Exception) -> None:
        self.is_open = False
        self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
