"""The door by itself, with nothing behind it that computes: heads, tokens, and what a sender that is refused is told."""

from __future__ import annotations

import asyncio
import contextlib

import orjson
import pytest

from reqdedup.serving.limits import Limits
from reqdedup.serving.server.door import Access, Guard, _Server, listen, read_body, uvicorn_config
from reqdedup.serving.wire.answers import json_response

TOKEN = "a-token-of-the-tests-0123456789"
LIMIT = 1000
LIMITS = Limits(max_header_bytes=LIMIT, header_s=0.3)
pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def served(limits=LIMITS, token=None):
    """The port of a server that answers with the length of the body."""

    async def app(scope, receive, send):
        body = await read_body(receive, limits)
        await json_response({"bytes": len(body)})(scope, receive, send)

    access, ready = Access(port=0, token=token), asyncio.Event()
    door = listen(access)
    server = _Server(uvicorn_config(Guard(app, token), access, limits, drain_s=1), ready.set)
    serving = asyncio.create_task(server.serve([door]))
    await ready.wait()
    try:
        yield door.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def said(port, data, *, size=None):
    """Everything that comes back for these bytes, sent in pieces of so many, until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = size or max(1, len(data))
    with contextlib.suppress(ConnectionError):
        for first in range(0, len(data), size):
            writer.write(data[first : first + size])
            await writer.drain()
            await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def head_of(num_bytes, *, method=b"GET", more=b""):
    head = method + b" / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + more + b"x: "
    return head + b"y" * (num_bytes - len(head) - 4) + b"\r\n\r\n"


def status_and_error(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.lower().count(b"\r\ndate:") == 1
    return int(head.split()[1]), orjson.loads(body).get("error")


def test_a_head_over_the_limit_is_a_431_however_it_arrives():
    async def asked():
        async with served() as port:
            for num_bytes in (LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2, 3 * LIMIT, 200_000):
                for size in (None, 997, 64, *([1] if num_bytes < 2 * LIMIT else [])):
                    status, error = status_and_error(await said(port, head_of(num_bytes), size=size))
                    assert status == (200 if num_bytes <= LIMIT else 431), (num_bytes, size)
                    assert error is None or error["message"] == f"head: at most {LIMIT} bytes required, found more"

    asyncio.run(asked())


def test_a_body_behind_the_head_in_one_write_counts_as_a_body():
    async def asked():
        async with served() as port:
            head = head_of(LIMIT, method=b"POST", more=b"content-length: 5000\r\n")
            for size in (None, 999):
                answer = await said(port, head + b"b" * 5000, size=size)
                assert answer.endswith(b'{"bytes":5000}'), (size, answer)

    asyncio.run(asked())


def test_a_second_head_in_one_write_with_the_first_is_held_to_the_limit_too():
    first = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"

    async def asked():
        async with served() as port:
            assert (await said(port, first + head_of(LIMIT))).count(b"HTTP/1.1 200") == 2
            answer = await said(port, first + head_of(LIMIT + 100))
            assert (answer.count(b"HTTP/1.1 200"), answer.count(b"HTTP/1.1")) == (1, 1)

    asyncio.run(asked())


def test_an_offer_of_another_protocol_is_ignored_and_the_body_is_read():
    """Clients of Java make it with every request, unless they are told not to."""

    async def asked():
        body = b"\r\nUpgrade: h2c\r\n\r\n"
        async with served() as port:
            for name in (b"Upgrade", b"upgrade"):
                for apart in (False, True):  # head and body in one read, or in two
                    offer = b"connection: upgrade, close\r\n" + name + b": h2c\r\ncontent-length: %d\r\n" % len(body)
                    head = head_of(400, method=b"POST", more=offer)
                    answer = await said(port, head + body, size=len(head) if apart else None)
                    assert status_and_error(answer) == (200, None)
                    assert answer.endswith(b'{"bytes":%d}' % len(body))

    asyncio.run(asked())


def test_a_head_that_does_not_come_is_a_408_and_a_connection_without_one_ends():
    async def asked():
        async with served() as port:
            half, none, nonsense = await asyncio.gather(
                said(port, b"GET / HTTP/1.1\r\nhost: "), said(port, b""), said(port, b"nonsense\r\n\r\n")
            )
        status, error = status_and_error(half)
        assert (status, error["column"], error["required"]) == (408, "head", "all bytes within 0.3 s")
        assert none == b""
        assert status_and_error(nonsense) == (
            400,
            {
                "message": "head: HTTP/1.1 required, found something else",
                "column": "head",
                "required": "HTTP/1.1",
                "found": "something else",
            },
        )

    asyncio.run(asked())


def test_the_scheme_of_a_token_has_any_case_and_the_token_its_own():
    def head(authorization):
        return head_of(300, more=b"authorization: " + authorization.encode() + b"\r\n")

    async def asked():
        async with served(token=TOKEN) as port:
            for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN}"):
                assert status_and_error(await said(port, head(authorization)))[0] == 200, authorization
            for authorization in (f"Bearer {TOKEN.upper()}", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer{TOKEN}", ""):
                assert status_and_error(await said(port, head(authorization)))[0] == 401, authorization

    asyncio.run(asked())
