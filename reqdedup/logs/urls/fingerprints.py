"""Fingerprints of pages that are shipped: a table of them, and a checksum of the body that a local server answers.

Neither crawls: fetching pages of the web is the business of whoever has the right to, and any function will do.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from reqdedup.logs.urls.parsing import split_url, without

_TIMEOUT_S = 10.0


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
                self._hashes.setdefault(without(split, set()), []).append(content)

    def __len__(self) -> int:
        return len(self._hashes)

    def __call__(self, url: str) -> str | int | None:
        split = split_url(url)
        key = url if split is None else without(split, set())
        hashes = self._hashes.get(key)
        if hashes is None:
            return None
        if len(hashes) == 1:
            return hashes[0]
        call = self._calls[key] = self._calls.get(key, -1) + 1
        return hashes[call % len(hashes)]


class BodyChecksum:
    """SHA-256 of status, Location and body that a server on this machine answers for a URL, with its host as the Host
    header. Redirects are not followed: where one leads is part of what the page is.

    server: "http://127.0.0.1:8080"; a copy of the sites behind it. Raises ValueError for an address of elsewhere.
    None for a request that fails, also with a status that says nothing of the page: 429 and those from 500 on.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        if parts.scheme != "http" or not _is_loopback(parts.hostname):
            raise ValueError(
                f"urls: a server on a loopback address (http://127.0.0.1:PORT) required, found {server!r}; bring a "
                "fingerprint of your own for pages of the web"
            )
        self._address = (str(parts.hostname), parts.port or 80)

    def __call__(self, url: str) -> str | None:
        split = split_url(url)
        if split is None:
            return None
        href = without(split, set()).partition("#")[0]
        path = href.partition("://")[2].partition("/")[2]
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/" + path, headers={"Host": split.host})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == http.HTTPStatus.TOO_MANY_REQUESTS or answer.status >= 500:
                return None
            head = f"{answer.status} {answer.headers.get('Location', '')}\n"
            return hashlib.sha256(head.encode("utf-8", "surrogateescape") + body).hexdigest()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _is_loopback(host: str | None) -> bool:
    """Whether a host, with all its addresses, is this machine."""
    try:
        found = socket.getaddrinfo(host or "", None)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)
