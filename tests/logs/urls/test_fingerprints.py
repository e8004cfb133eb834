"""The fingerprints that are shipped, one of them on a real server on loopback."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from reqdedup.logs.urls import BodyChecksum, ContentTable, fingerprints, learn

STATUSES = {"/moved": 302, "/gone": 410, "/missing": 404, "/busy": 503}


@pytest.fixture
def server():
    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            body = f"{self.headers['Host']} {query.get('id', ['none'])[0]}".encode()
            if parts.path in STATUSES:
                body = b"not here"
            self.send_response(STATUSES.get(parts.path, 200 if "id" in query else 404))
            self.send_header("Location", f"/p/{query.get('id', ['none'])[0]}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_rules_are_learned_from_the_bodies_that_a_server_answers(server):
    urls = [f"https://{host}.example/p?id={number % 7}&ref={number}" for host in "ab" for number in range(10)]
    learned = learn(urls, BodyChecksum(server))
    assert learned.rules.hosts == {f"{host}.example": {("id", "ref"): {"id"}} for host in "ab"}
    checksum = BodyChecksum(server)
    assert checksum("https://a.example/?id=1") == checksum("http://a.example/q?id=1#top")
    assert checksum("https://a.example/?id=1") != checksum("https://b.example/?id=1")
    assert checksum("no url") is None


@pytest.mark.parametrize("path", STATUSES)
def test_an_answer_without_a_page_tells_nothing_so_that_pages_that_are_gone_stay_apart(server, path):
    urls = [f"https://gone.example{path}?id={number}" for number in range(20)]
    learned = learn([*urls, "https://one.example/p?id=1"], BodyChecksum(server))
    assert learned.rules.hosts["gone.example"] == {("id",): {"id"}}
    assert BodyChecksum(server)(urls[0]) is None


def test_a_server_that_is_gone_is_an_unknown_page_and_one_elsewhere_is_refused():
    assert BodyChecksum("http://127.0.0.1:1")("https://a.example/?id=1") is None
    odd = [
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "http://127.0.0.1:0",
        "http://a..b",
        "http://127.0.0.1/a",
        "",
    ]
    for server, reason in (("https://127.0.0.1", "https, and"), ("http://127.0.0.1/a", "serve the copy at /")):
        with pytest.raises(ValueError, match=reason):
            BodyChecksum(server)
    elsewhere = ["http://192.0.2.1:80", "https://127.0.0.1", "file:///etc/passwd", "127.0.0.1:80", "http://"]
    for server in [*elsewhere, *odd]:
        with pytest.raises(ValueError, match="a server on a loopback address"):
            BodyChecksum(server)


def test_what_a_server_answered_is_said_if_no_page_is_known(server):
    urls = [f"https://gone.example{path}?id={number}" for path in ("/gone", "/moved") for number in range(4)]
    checksum = BodyChecksum(server)
    with pytest.raises(ValueError, match=r"found none of \d+ known \(status 302: \d+, status 410: \d+\)"):
        learn(urls, checksum)
    assert set(checksum.statuses) == {302, 410}


def test_a_server_that_never_answers_is_given_up():
    checksum = BodyChecksum("http://127.0.0.1:1")
    with pytest.raises(
        ValueError, match=r"found 20 pages in a row without an answer, the last 'http://a.example/\?id=19'"
    ):
        [checksum(f"http://a.example/?id={number}") for number in range(30)]
    assert checksum.answers == "no answer: 20"


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"HTTP"]
)
def test_a_server_that_sends_byte_by_byte_has_a_time_for_all_of_them(monkeypatch, head):
    monkeypatch.setattr(fingerprints, "_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = threading.Event()

        def drip():
            sending, _ = listening.accept()
            with sending, contextlib.suppress(OSError):
                sending.sendall(head)
                while not done.wait(0.01):
                    sending.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        assert BodyChecksum(f"http://127.0.0.1:{listening.getsockname()[1]}")("http://a.example/?id=1") is None
        done.set()
        thread.join()


def test_a_table_knows_urls_in_any_order_of_parameters_and_tells_its_own_noise():
    table = ContentTable([("http://s.example/?b=1&a=2", "x"), ("no url", "y"), ("http://s.example/", None)])
    assert len(table) == 1
    assert table("http://S.example/?a=2&b=1#top") == "x"
    assert table("http://s.example/?a=2") is None
    twice = ContentTable([("http://s.example/?a=1", "x"), ("http://s.example/?a=1", "y")])
    assert [twice("http://s.example/?a=1") for _ in range(3)] == ["x", "y", "x"]


def test_two_rows_of_a_url_are_enough_to_see_noise():
    urls = [f"http://s.example/?id={number}&ref={number}" for number in range(60)]
    changing = [(url, f"{number} {look if number < 15 else 0}") for number, url in enumerate(urls) for look in range(2)]
    with pytest.raises(ValueError, match="of 60 pages differed from themselves"):
        learn(urls, ContentTable(changing))
    still = [(url, hashed.partition(" ")[0]) for url, hashed in changing]
    assert learn(urls, ContentTable(still)).noise == {"s.example": 0}


def test_rules_are_learned_from_a_table():
    urls = [f"http://s.example/?id={number}&ref={number}" for number in range(20)]
    rows = [(url, f"page {number}") for number, url in enumerate(urls)]
    rows += [(f"http://s.example/?id={number}", f"page {number}") for number in range(20)]
    rows += [(f"http://s.example/?ref={number}", "no such page") for number in range(20)]
    learned = learn(urls, ContentTable(rows))
    assert learned.rules.hosts["s.example"] == {("id", "ref"): {"id"}}
