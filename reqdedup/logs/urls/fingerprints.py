"""Fingerprints of pages that are shipped: a table of them, and a checksum of the body that a local server answers.

Neither crawls: fetching pages of the web is the business of whoever has the right to, and any function will do.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from reqdedup.logs.urls.parsing import split_url, write_url

_TIMEOUT_S = 10.0
_MAX_FAILURES = 20
"""Number of pages in a row without any answer, after which the server counts as gone."""


class ContentTable:
    """Fingerprints from pairs of a URL and a hash of its content; None of a URL that is not there.

    Parameters may come in any order. A URL with different hashes changes by itself: each call gives the next one, so
    that the measured noise is that of the table.
    """

    def __init__(self, rows: Iterable[tuple[str, str | int]]) -> None:
        self._hashes: dict[str, list[str | int]] = {}
        self._calls: dict[str, int] = {}
        for url, content in rows:
            if (split := split_url(url)) is not None and content is not None:
                self._hashes.setdefault(write_url(split), []).append(content)

    def __len__(self) -> int:
        return len(self._hashes)

    def __call__(self, url: str) -> str | int | None:
        split = split_url(url)
        key = url if split is None else write_url(split)
        hashes = self._hashes.get(key)
        if hashes is None:
            return None
        if len(hashes) == 1:
            return hashes[0]
        call = self._calls[key] = self._calls.get(key, -1) + 1
        return hashes[call % len(hashes)]


class BodyChecksum:
    """SHA-256 of the body that a server on this machine answers for a URL, with its host as the Host header.

    server: "http://127.0.0.1:8080"; a copy of the sites behind it. Raises ValueError for an address of elsewhere.
    None for a request that fails, and for every status but 2xx: pages that are gone, and those that a redirect leads
    away from, look alike and are not one page. A page has 10 s in all, its connection 10 s;
    ValueError after 20 in a row without any answer.

    statuses: number of answers by status, 0 of requests that had none.
    """

    def __init__(self, server: str) -> None:
        self._failures = 0
        self.statuses: Counter[int] = Counter()
        self._address = _loopback(server)

    @property
    def answers(self) -> str:
        """What the server answered, in words."""
        counts = [
            (f"status {status}" if status else "no answer", count) for status, count in sorted(self.statuses.items())
        ]
        return ", ".join(f"{what}: {count:,}" for what, count in counts)

    def __call__(self, url: str) -> str | None:
        split = split_url(url)
        if split is None:
            return None
        href = write_url(split).partition("#")[0]
        path = href.partition("://")[2].partition("/")[2]
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        try:
            connection.connect()
            with _limited(connection.sock):
                connection.request("GET", "/" + path, headers={"Host": split.host})
                answer = connection.getresponse()
                body = answer.read()
            self._failures = 0
            self.statuses[answer.status] += 1
            return hashlib.sha256(body).hexdigest() if 200 <= answer.status < 300 else None
        except (OSError, http.client.HTTPException) as error:
            self._failures += 1
            self.statuses[0] += 1
            if self._failures == _MAX_FAILURES:
                raise ValueError(
                    f"urls: a server that answers required, found {_MAX_FAILURES} pages in a row without an answer, "
                    f"the last {url!r:.200}: {type(error).__name__}: {error}"
                ) from None
            return None
        finally:
            connection.close()


@contextlib.contextmanager
def _limited(connected: socket.socket) -> Iterator[None]:
    """End the connection after the time that a page has; a timeout of the socket is one of each read."""
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        with contextlib.suppress(OSError):  # it has ended by itself
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_TIMEOUT_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if is_late.is_set():
        raise TimeoutError(f"no whole page in {_TIMEOUT_S:g} s")


def _loopback(server: str) -> tuple[str, int]:
    """Host and port of a server's address. Raises ValueError for what is no address, or not one of this machine."""
    own = "bring a fingerprint of your own (--fingerprint) for what this does not fetch"
    try:
        parts = urlsplit(server)
        port = 80 if parts.port is None else parts.port
        if parts.scheme == "https":
            wrong = f"https, and pages are asked for with http; {own}"
        elif parts.scheme != "http":
            wrong = "no http://"
        elif not _is_local(parts.hostname or ""):
            wrong = f"an address of elsewhere; {own}"
        elif parts.path not in ("", "/") or parts.query or parts.fragment:
            wrong = (
                f"a path: each page is asked for by the path of its own URL, its host as Host; serve the copy at /, "
                f"or {own}"
            )
        elif port == 0:
            wrong = "port 0"
        else:
            return str(parts.hostname), port
    except (OSError, ValueError) as error:  # brackets without an address, a port beyond 65535, labels that are none
        wrong = str(error)
    raise ValueError(
        f"urls: a server on a loopback address (http://127.0.0.1:PORT) required, found {server!r}: {wrong}"
    )


def _is_local(host: str) -> bool:
    found = socket.getaddrinfo(host, None)
    return bool(found) and all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)
