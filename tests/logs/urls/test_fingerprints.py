"""The fingerprints that are shipped, one of them on a real server on loopback."""

from __future__ import annotations

import http.server
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from reqdedup.logs.urls import BodyChecksum, ContentTable, learn


@pytest.fixture
def server():
    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            query = parse_qs(urlsplit(self.path).query)
            if self.path.startswith(("/go", "/busy")):
                self.send_response(302 if self.path.startswith("/go") else 503)
                self.send_header("Location", f"/p/{query.get('id', ['none'])[0]}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = f"{self.headers['Host']} {query.get('id', ['none'])[0]}".encode()
            self.send_response(200 if "id" in query else 404)
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


def test_where_a_redirect_leads_tells_pages_apart_and_a_server_that_fails_tells_nothing(server):
    for path, knows in (("go", ""), ("busy", "p?id=1")):  # all would be one item otherwise
        urls = [f"https://{path}.example/{path}?id={number}" for number in range(20)]
        learned = learn([*urls, f"https://one.example/{knows}"], BodyChecksum(server))
        assert learned.rules.hosts[f"{path}.example"] == {("id",): {"id"}}
    assert BodyChecksum(server)("https://a.example/busy") is None


def test_a_server_that_is_gone_is_an_unknown_page_and_one_elsewhere_is_refused():
    assert BodyChecksum("http://127.0.0.1:1")("https://a.example/?id=1") is None
    for server in ("http://192.0.2.1:80", "https://127.0.0.1", "file:///etc/passwd", "127.0.0.1:80", "http://"):
        with pytest.raises(ValueError, match="a server on a loopback address"):
            BodyChecksum(server)


def test_a_table_knows_urls_in_any_order_of_parameters_and_tells_its_own_noise():
    table = ContentTable([("http://s.example/?b=1&a=2", "x"), ("no url", "y"), ("http://s.example/", None)])
    assert len(table) == 1
    assert table("http://S.example/?a=2&b=1#top") == "x"
    assert table("http://s.example/?a=2") is None
    twice = ContentTable([("http://s.example/?a=1", "x"), ("http://s.example/?a=1", "y")])
    assert [twice("http://s.example/?a=1") for _ in range(3)] == ["x", "y", "x"]


def test_rules_are_learned_from_a_table():
    urls = [f"http://s.example/?id={number}&ref={number}" for number in range(20)]
    rows = [(url, f"page {number}") for number, url in enumerate(urls)]
    rows += [(f"http://s.example/?id={number}", f"page {number}") for number in range(20)]
    rows += [(f"http://s.example/?ref={number}", "no such page") for number in range(20)]
    learned = learn(urls, ContentTable(rows))
    assert learned.rules.hosts["s.example"] == {("id", "ref"): {"id"}}
