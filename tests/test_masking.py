"""No message, report or file name shows a credential that stood in the location of some data."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reqdedup import cli
from reqdedup.audit import audit_table
from reqdedup.logs import read_log
from reqdedup.masking import has_credentials, mask


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKID:TOPSECRET@bucket/x", "s3://AKID:***@bucket/x"),
        ("s3://AKID:a/b+c=TOPSECRET@bucket/x", "s3://AKID:***@bucket/x"),
        ("ftp:/me:TOPSECRET@host/x", "ftp:/me:***@host/x"),  # pathlib's spelling of it
        ("ftp://:TOPSECRET@host/x", "ftp://:***@host/x"),
        ("https://TOPSECRET@host/x", "https://***@host/x"),
        ("s3://bucket/x?secret_key=TOPSECRET&region=b", "s3://bucket/x?secret_key=***&region=b"),
        ("https://h/c?sv=1&sig=TOPSECRET%3D", "https://h/c?sv=1&sig=***"),
        ("two: a://u:TOPSECRET@h and 'b://v:TOPSECRET@h'", "two: a://u:***@h and 'b://v:***@h'"),
        ("abfss://container@account.dfs.core.windows.net/x", None),
        ("s3://bucket/user=a@b.c/day=1", None),
        ("hdfs://name:8020/x", None),
        ("http://127.0.0.1:8181/v1", None),
        ("ratio 3:4, mail a@b", None),
    ],
)
def test_what_may_be_a_credential_is_hidden_and_the_rest_is_not(text, shown):
    assert mask(text) == (text if shown is None else shown)
    assert has_credentials(text) is (shown is not None)


S3, FTP = "s3://AKID:TOPSECRET@bucket/x?endpoint_override={}&scheme=http", "ftp://me:TOPSECRET@127.0.0.1/x"


@pytest.fixture(scope="module")
def refusing():
    """Address of a store that refuses whoever asks; where nobody listens, Arrow asks for six seconds."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_HEAD = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=[S3, FTP], ids=["s3", "ftp"])
def location(request, refusing) -> str:
    return request.param.format(refusing)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["audit", "{}", "--request-key", "r"],
        ["convert", "{}", "--table", "a.b", "--user", "u", "--request", "r", "--item", "i", "--time", "t"],
        ["ingest", "{}", "--preset", "movielens", "--table", "a.b"],
        ["ingest", "x.csv", "--mapping", "{}", "--table", "a.b"],
        ["health", "--table", "a.b", "--catalog-uri", "{}", "--warehouse", "w"],
        ["health", "--table", "a.b", "--catalog", "{}"],
        ["tables", "--catalog-uri", "postgresql+psycopg2://me:a@b:TOPSECRET@127.0.0.1:1/x", "--warehouse", "w"],
        ["ingest", "x.csv", "--preset", "movielens", "--table", "a.b", "--warehouse", "{}"],
    ],
)
def test_a_command_that_fails_shows_no_credential(tmp_path, monkeypatch, capfd, command, location):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("userId,movieId,rating,timestamp\n1,2,3,1000000000\n")
    assert cli.main([word.format(location) for word in command]) == 2
    printed = capfd.readouterr()
    assert "TOPSECRET" not in printed.out + printed.err


@pytest.mark.slow
def test_an_error_of_the_library_shows_no_credential_nor_chains_to_one_that_does(location):
    for call in (lambda: audit_table(location, request_key="r"), lambda: read_log(location, preset="movielens")):
        with pytest.raises(ValueError, match=r"\*\*\*@") as caught:
            call()
        error: BaseException | None = caught.value
        assert "TOPSECRET" not in str(error)
        assert error is not None
        assert error.__suppress_context__ or error.__context__ is None
