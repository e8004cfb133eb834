"""An HTTP proxy on loopback that passes requests on and, when told to, swallows the answer: a connection lost mid-commit."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import requests

from tests.servers.process import LOOPBACK


class DroppingProxy:
    """Serves in a thread inside the `with` block.

    dropped: answers swallowed so far.
    """

    def __init__(self, target: str) -> None:
        self.dropped = 0
        self._drop: str | None = None
        self._server = ThreadingHTTPServer((LOOPBACK, 0), self._handler(target))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self._server.server_address[1]}"

    def drop_answers_to(self, path_end: str) -> None:
        """The next POST to such a path is passed on, and its answer swallowed; later ones are answered."""
        self._drop = path_end

    def __enter__(self) -> DroppingProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _handler(self, target: str) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
                answer = requests.request(self.command, target + self.path, data=body, headers=headers, timeout=20)
                path = self.path.partition("?")[0]
                if proxy._drop is not None and self.command == "POST" and path.endswith(proxy._drop):
                    proxy._drop = None
                    proxy.dropped += 1
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else answer.content)

            do_GET = do_POST = do_HEAD = do_DELETE = forward

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler
