"""The wire's outer side: who may speak to the application, how slowly, and how a process begins and ends.

`Guard` asks for the token, or, without one, for a loopback name in the Host header, so that a web page of another site
cannot speak to a server on this machine by a name of its own. `PatientProtocol` refuses a head that takes too
long or is too long, which uvicorn does not; `read_body` looks after bodies. Access logs are off: nothing of a
request is logged, so no token and no user can be.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import re
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from reqdedup.serving.limits import Limits
from reqdedup.serving.requests import RequestError
from reqdedup.serving.wire.answers import error_response, json_response

OPEN_PATHS = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs")
"""Answered without the token: they say nothing about users or models."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LINGER_S = 0.5
"""How long what a refused sender still sends is thrown away: closed at once, the kernel would take the answer back
[seconds]."""
_END = b"\r\n\r\n"
_OFFER = re.compile(rb"\r\n[Uu]pgrade:")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where a server listens, and who may ask. token: None lets everybody on this machine.  certificate, key: PEM files
    for TLS."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise ValueError(f"a port from 0 to 65535 required, found {self.port}")
        if self.host not in LOOPBACK and not self.token:
            raise ValueError(
                f"a token required to listen on {self.host}, where other machines reach the server, found none; "
                f"name a file that holds one with --token, or listen on 127.0.0.1"
            )
        if self.token is not None and (len(self.token) < 16 or not self.token.isascii()):
            raise ValueError("a token of at least 16 ASCII characters required, found another; `openssl rand -hex 32`")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key required for TLS, found one of them")

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{self.port}"


class Guard:
    """The application behind its door."""

    def __init__(self, app: Asgi, token: str | None) -> None:
        self._app, self._expected = app, token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and (refusal := self._refusal(scope)):
            status, message = refusal
            headers = {"www-authenticate": "Bearer", "connection": "close"}
            await json_response({"error": {"message": message}}, status, headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if self._expected is not None:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            is_known = hmac.compare_digest(token.strip(b" "), self._expected)
            if is_known and scheme.lower() == b"bearer":  # RFC 9110: of any case
                return None
            return 401, "authorization: the bearer token of this server required, found another or none"
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]") or LOOPBACK[0]
        if host in LOOPBACK or host == ":" or scope.get("client") is None:
            return None
        return 421, "host: a loopback name required by a server without a token, found another"


async def read_body(receive: Receive, limits: Limits) -> bytes:
    """All of a request's body, within its limits of bytes and time. Raises RequestError, 4xx."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestError("body", "all of it", "a closed connection", status=499)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limits.max_body_bytes:
                    raise RequestError("body", f"at most {limits.max_body_bytes} bytes", "more", status=413)
                if not message.get("more_body", False):
                    return b"".join(parts) if len(parts) > 1 else bytes(parts[0])
    except TimeoutError:
        raise RequestError("body", f"all bytes within {limits.body_s:g} s", f"{size}", status=408) from None


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's, with a limit of time and bytes on the head of a request, however it arrives, and errors in JSON.
    `limits` is set by `uvicorn_config`."""

    limits = Limits()
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _last_bytes = b""
    """Of the head so far: its end may be cut by two reads."""
    _in_head = True
    _is_refused = False

    # uvicorn's own type: asyncio hands the protocol of a stream a Transport, and calls it a BaseTransport.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._in_head:
            if b"pgrade:" in data:
                data = _without_offer(data)
            room = self.limits.max_header_bytes - self._head_bytes
            if len(data) > room and _END not in self._last_bytes + data[:room]:
                self._refuse(self._too_long())
                return
            self._head_bytes += len(data)
            self._last_bytes = (self._last_bytes + data[-3:])[-3:]
        super().data_received(data)
        if self._in_head and self._head_bytes and not self._is_refused and self._timer is None:
            self._wait_for_head()  # most heads come whole

    def on_headers_complete(self) -> None:
        lines = len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        if lines > self.limits.max_header_bytes:  # behind another request, in one read with it
            raise self._too_long()
        self._in_head = False
        self._forget_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._head_bytes, self._last_bytes = True, 0, b""

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses, and what a callback of it raised."""
        error: BaseException | None = sys.exception()
        while error is not None and not isinstance(error, RequestError):
            error = error.__context__
        self._refuse(error or RequestError("head", "HTTP/1.1", "something else", status=400))

    def _too_long(self) -> RequestError:
        return RequestError("head", f"at most {self.limits.max_header_bytes} bytes", "more", status=431)

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_s, self._is_late)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_late(self) -> None:
        if self._head_bytes:
            required = f"all bytes within {self.limits.header_s:g} s"
            self._refuse(RequestError("head", required, str(self._head_bytes), status=408))
        else:
            self._close()

    def _refuse(self, error: RequestError) -> None:
        """Answer, and let the connection end; an earlier request on it has its answer first, then it ends without
        words."""
        self._forget_timer()
        self._is_refused = True
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            return
        answer = error_response(error)
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = [name + b": " + value + b"\r\n" for name, value in headers if name != b"connection"]
        self.transport.write(
            b"".join([STATUS_LINE[answer.status_code], *lines, b"connection: close\r\n\r\n", bytes(answer.body)])
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self._close)

    def _close(self) -> None:
        self._forget_timer()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()


def _without_offer(data: bytes) -> bytes:
    """A head that offers another protocol (HTTP/2 by Java's client and by curl --http2) with that line renamed: a
    server may ignore the offer, and httptools would leave out the body of a request that makes one."""
    head, end, body = data.partition(_END)
    return _OFFER.sub(b"\r\nx-offer:", head) + end + body


def uvicorn_config(app: Any, access: Access, limits: Limits, *, drain_s: float) -> uvicorn.Config:
    protocol = type("Protocol", (PatientProtocol,), {"limits": limits})
    return uvicorn.Config(
        app,
        host=access.host,
        port=access.port,
        http=protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(drain_s),
        backlog=1024,
        ssl_certfile=access.certificate,
        ssl_keyfile=access.key,
    )


def listen(access: Access) -> socket.socket:
    """A listening socket. Raises OSError, a sentence, if the port is taken, ValueError for files that are no TLS."""
    if access.certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(access.certificate, access.key)
        except OSError as error:  # ssl's own errors are some
            raise ValueError(
                f"{access.certificate} and {access.key}: a certificate and its key, PEM, required, found {error}"
            ) from None
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    try:
        return socket.create_server((access.host, access.port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(
            f"a free port required at {access.host}:{access.port}, found {error.strerror}; name another"
        ) from None


class _Server(uvicorn.Server):
    """One that says when it answers, and ends once it has answered: a TLS client that keeps an idle connection need not
    say goodbye first."""

    def __init__(self, config: uvicorn.Config, answers: Callable[[], None]) -> None:
        super().__init__(config)
        self._answers = answers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._answers()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_idle())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_idle(self) -> None:
        idle: set[Any] = set()
        while True:
            was_idle, idle = idle, set()
            for connection in list(self.server_state.connections):
                cycle: Any = getattr(connection, "cycle", None)
                if cycle is None or cycle.response_complete:
                    idle.add(connection)
            for connection in idle & was_idle:  # what it answered is sent by now
                connection.transport.abort()
            await asyncio.sleep(0.5)


def run_until_signal(
    app: Asgi,
    access: Access,
    limits: Limits,
    sockets: list[socket.socket],
    *,
    drain_s: float,
    answers: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was admitted. answers: called once it is answered here."""
    server = _Server(uvicorn_config(Guard(app, access.token), access, limits, drain_s=drain_s), answers)
    gc.collect()
    gc.freeze()  # half a million objects of libraries, which every full collection would look at again
    gc.enable()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again once it is done: that must not end the process
    server.run(sockets=sockets)
