"""`reqdedup urls`: rules are learned, guarded, applied and compared from the command line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import polars as pl
import pytest

from reqdedup import cli
from reqdedup.logs import read_log
from reqdedup.logs.urls import Rules, load_rules
from reqdedup.logs.urls.reading import read_contents, read_urls

URLS = [f"http://s.example/p?id={number % 10}&ref={number}" for number in range(30)]


def ref_matters(url):
    """A fingerprint of one's own."""
    return "ref=" in url and url.rpartition("ref=")[2]


def log_in(url):
    return "log in"


def is_interrupted(url):
    raise KeyboardInterrupt


def fails(url):
    raise KeyError("gone")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    pages = [*URLS, *(f"http://s.example/p?id={number}" for number in range(10))]
    pages += [f"http://s.example/p?ref={number}" for number in range(30)]
    hashes = ["none" if "id=" not in url else url.split("id=")[1].partition("&")[0] for url in pages]
    frame = pl.DataFrame({"url": pages, "content_hash": hashes})
    frame.write_parquet("pages.parquet")
    frame.write_csv("pages.csv")
    pl.DataFrame({"url": [URLS]}).write_parquet("lists.parquet")
    (tmp_path / "urls.txt").write_text("\n".join([*URLS, "no url", ""]))

    def call(*words, code=0):
        capsys.readouterr()
        try:
            found = cli.main(["urls", *map(str, words)])
        except SystemExit as usage:
            found = usage.code
        assert found == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return call


@pytest.mark.parametrize("contents", ["pages.parquet", "pages.csv"])
def test_rules_are_learned_and_applied(run, contents):
    told = json.loads(run("learn", "urls.txt", "--contents", contents, "--rules", "miqps.json", "--json"))
    assert (told["patterns"], told["urls"], told["not_urls"]) == (1, 30, 1)
    assert told["fingerprint"] == load_rules("miqps.json").fingerprint
    forms = run("normalise", "urls.txt", "--rules", "miqps.json").splitlines()
    assert forms == [*(f"http://s.example/p?id={number % 10}" for number in range(30)), "no url"]
    told = json.loads(run("normalise", contents, "--json"))
    assert (told["urls"], told["items"]) == (70, 70)
    own = ("--fingerprint", f"{__name__}:log_in", "--max-same", "1", "--json")
    assert json.loads(run("learn", "urls.txt", *own, "--rules", "all.json"))["alike"] == []
    assert "1 pattern of 1 host" in run("learn", "urls.txt", "--contents", contents, "--rules", "miqps.json")


def test_rules_that_lose_parameters_are_refused_and_the_layers_of_the_old_ones_stay(run):
    run("learn", "urls.txt", "--contents", "pages.csv", "--rules", "miqps.json")
    old = load_rules("miqps.json")
    Rules(hosts=old.hosts, keep=("^sku$",)).save("miqps.json")
    own = ("--fingerprint", f"{__name__}:ref_matters")
    error = run("learn", "urls.txt", *own, "--rules", "miqps.json", code=2)
    assert "the old rules stay" in error
    assert load_rules("miqps.json").hosts == old.hosts
    told = run("learn", "urls.txt", *own, "--rules", "miqps.json", "--max-flagged", "1")
    assert "1 of 1 patterns lost a parameter" in " ".join(told.split())
    assert load_rules("miqps.json").keep == ("^sku$",)
    old.save("old.json")
    said = " ".join(run("diff", "old.json", "miqps.json", "urls.txt").split())
    assert "30 of 31 URLs have another normal form: 11 items become 31" in said
    told = json.loads(run("diff", "old.json", "miqps.json", "pages.parquet", "--json"))
    assert (told["urls"]["changed"], told["urls"]["split"]) == (30, 10)


def test_a_text_may_begin_with_a_byte_order_mark(run):
    Path("bom.txt").write_text("http://s.example/?b=1&a=2\r\n", encoding="utf-8-sig", newline="")
    assert run("normalise", "bom.txt") == "http://s.example/?a=2&b=1\n"


def test_bytes_that_are_no_utf8_stay_apart(run):
    Path("latin.txt").write_bytes(b"http://s.example/?b=\xff\nhttp://s.example/?b=\xfe\n")
    assert run("normalise", "latin.txt").splitlines() == [f"http://s.example/?b=\\x{byte}" for byte in ("ff", "fe")]


def test_halves_of_surrogate_pairs_in_json_lines_stay_apart_and_are_no_urls(run):
    urls = [f"http://s.example/?q=\\u{half}" for half in ("d800", "d801", "00e9")]
    Path("halves.jsonl").write_text("".join(f'{{"url": "{url}"}}\n' for url in urls))
    told = json.loads(run("normalise", "halves.jsonl", "--json"))
    assert (told["urls"], told["items"], told["not_urls"]) == (3, 3, 2)
    assert run("normalise", "halves.jsonl").splitlines() == [*urls[:2], "http://s.example/?q=%C3%A9"]
    mapping = {
        "user_id": "user",
        "item_id": {"column": "url", "type": "url"},
        "time": {"column": "ts"},
        "labels": {"a": "a"},
    }
    rows = (f'{{"user": 1, "ts": {1_700_000_000 + at}, "a": 1, "url": "{url}"}}\n' for at, url in enumerate(urls))
    Path("log.jsonl").write_text("".join(rows))
    log = read_log("log.jsonl", mapping=mapping, max_rejects=1)
    assert sum(batch.num_rows for batch in log) == 1  # an ingest rejects the others, counted
    assert log.counts.rejected == {"json": 2}


def test_json_lines_are_read_as_tables_are(run):
    lines = ['{"url": "http://s.example/?b=1&a=2", "n": [1]}', "", '{"n": 2}', '{"url": null}', '{"url": 7}']
    Path("odd.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert run("normalise", "odd.jsonl").split("\n") == ["http://s.example/?a=2&b=1", "", "", "7", ""]
    for line, message in (
        ("[1]", "found on line 1: [1]"),
        ('{"url": {}}', "found on line 1"),
        ('{"u": 1}', "a column url"),
    ):
        Path("bad.jsonl").write_text(line)
        assert message in " ".join(run("normalise", "bad.jsonl", code=2).split())


def test_a_broken_line_of_json_is_left_out_with_its_number_and_many_are_refused(run):
    good = [json.dumps({"url": f"http://s.example/?b={n}&a=1", "content_hash": n % 3}) for n in range(19)]
    Path("log.jsonl").write_bytes("\n".join([*good[:7], "", "{broken", *good[7:]]).encode() + b'\n{"url": "\xff"}\n')
    wanted = [f"http://s.example/?a=1&b={n}" for n in range(19)]
    refused = " ".join(run("normalise", "log.jsonl", "--max-rejects", "0.05", code=2).split())
    assert "at most 5% rejected lines required, found 2 of 21" in refused
    assert "found on line 9: Expecting property name" in refused
    with pytest.warns(UserWarning, match=r"log.jsonl: 2 lines left out: .* line 9: .*; line 22: "):
        assert read_urls("log.jsonl") == [json.loads(line)["url"] for line in good]
    assert [line for line in run("normalise", "log.jsonl").splitlines() if line] == wanted
    with pytest.warns(UserWarning, match="2 lines left out"):
        assert len(read_contents("log.jsonl")) == 19


def test_an_interrupted_learning_says_that_the_rules_are_as_they_were(run):
    own = ("--fingerprint", f"{__name__}:is_interrupted", "--rules", "miqps.json")
    told = " ".join(run("learn", "urls.txt", *own, code=130).split())
    assert "interrupted; nothing was kept: miqps.json was not written, 1 look at pages is lost" in told
    Rules().save("miqps.json")
    assert "miqps.json is as it was" in " ".join(run("learn", "urls.txt", *own, code=130).split())


def test_a_fingerprint_may_be_in_a_module_of_the_folder_one_is_in(run):
    Path("pages_of_mine.py").write_text("def page(url):\n    return url.partition('&')[0]\n")
    own = ("--fingerprint", "pages_of_mine:page", "--json")
    assert json.loads(run("learn", "urls.txt", *own, "--rules", "r"))["patterns"] == 1
    assert load_rules("r").hosts == {"s.example": {("id", "ref"): {"id"}}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("learn", "urls.txt", "--rules", "r"), "one of --contents, --server and --fingerprint required"),
        (("learn", "none.txt", "--rules", "r", "--contents", "pages.csv"), "a readable file required"),
        (("learn", "pages.csv", "--column", "u", "--rules", "r", "--contents", "pages.csv"), "a column u required"),
        (("learn", "urls.txt", "--rules", "r", "--contents", "urls.txt"), "a file .parquet"),
        (
            ("learn", "lists.parquet", "--rules", "r", "--contents", "pages.csv"),
            "a readable file required, found: cannot",
        ),
        (("learn", "urls.txt", "--rules", "r", "--server", "http://192.0.2.1"), "a loopback address"),
        (("learn", "urls.txt", "--rules", "r", "--server", "http://[::1"), "a loopback address"),
        (("learn", "urls.txt", "--rules", "r", "--fingerprint", f"{__name__}:log_in"), "30 URLs would become 1 items"),
        (("learn", "urls.txt", "--rules", "r", "--fingerprint", "none"), "module:function required"),
        (("learn", "urls.txt", "--rules", "r", "--fingerprint", f"{__name__}:fails"), "raised KeyError: 'gone'"),
        (("learn", "urls.txt", "--rules", "no/r", "--contents", "pages.csv"), "no/r: a folder that is there required"),
        (("normalise", "urls.txt", "--rules", "none.json"), "a readable file required"),
    ],
)
def test_what_cannot_be_done_is_said(run, words, message):
    assert message in " ".join(run(*words, code=2).split())


def test_a_list_without_urls_writes_no_rules_and_a_packed_one_is_read(run, tmp_path):
    Path("none.txt").write_text("")
    Path("table.csv.gz").write_bytes(gzip.compress(b"url\n"))
    Path("urls.txt.gz").write_bytes(gzip.compress(Path("urls.txt").read_bytes()))
    own = ("--contents", "pages.parquet", "--rules", "miqps.json")
    assert "found none among 0 texts" in run("learn", "none.txt", *own, code=2)
    assert "unpack it" in run("learn", "table.csv.gz", *own, code=2)
    Path("western.csv").write_bytes("url\nhttps://a.example/\xe9\n".encode("latin-1"))
    assert "iconv" in run("learn", "western.csv", *own, code=2)
    assert not Path("miqps.json").exists()
    assert "1 pattern of 1 host" in run("learn", "urls.txt.gz", *own)


def test_normal_forms_stand_on_the_lines_of_their_urls_and_are_not_masked(run):
    url = "https://u:p@s.example/?token=a"
    pl.DataFrame({"url": [url, None, "no\nurl", ""]}).write_parquet("some.parquet")
    assert run("normalise", "some.parquet").split("\n") == [url, "", "no\\nurl", "", ""]
    told = json.loads(run("normalise", "some.parquet", "--json"))
    assert (told["normalised"], told["urls"]) == ([url, "", "no\nurl", ""], 2)
    Path("some.txt").write_text(f"{url}\n\n{url}\n")
    assert run("normalise", "some.txt").split("\n") == [url, "", url, ""]
