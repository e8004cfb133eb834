"""A relay on loopback that counts HTTP requests and holds each back; bytes pass unchanged, so signatures stay valid."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

LOOPBACK = "127.0.0.1"
_PIECE = 2**16


@dataclass
class CountingProxy:
    """Listens on a port that the system chooses, in threads that end with the `with` block.

    target: host and port of the server.  latency_s: wait before each request is passed on.
    requests: method and path of those passed on, in the order of their arrival.
    """

    target: tuple[str, int]
    latency_s: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> CountingProxy:
        self._listener = socket.create_server((LOOPBACK, 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.target)
                self._open += [client, server]
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_requests, args=(client, server), daemon=True).start()
                threading.Thread(target=_pass_answers, args=(server, client), daemon=True).start()

    def _pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as stream:
            while head := _head(stream):
                method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
                self.requests.append((method, path))
                time.sleep(self.latency_s)
                server.sendall(head)
                for piece in _body(stream, head):
                    server.sendall(piece)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)


def _head(stream: BinaryIO) -> bytes:
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _body(stream: BinaryIO, head: bytes) -> Iterator[bytes]:
    pairs = [line.partition(b":") for line in head.lower().split(b"\r\n")]
    headers = {name: value.strip() for name, _, value in pairs}
    if headers.get(b"transfer-encoding") == b"chunked":
        while True:
            line = stream.readline()
            if not line:
                return
            size = int(line.partition(b";")[0], 16)
            yield line + stream.read(size + 2)
            if not size:
                return
    left = int(headers.get(b"content-length", 0))
    while left:
        piece = stream.read(min(_PIECE, left))
        if not piece:
            return
        left -= len(piece)
        yield piece


def _pass_answers(server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := server.recv(_PIECE):
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
