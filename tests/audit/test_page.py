"""The page of an audit: the numbers of the text report, in one file that asks nobody for anything."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from reqdedup import cli
from reqdedup.audit import audit_table, render
from reqdedup.audit.page import page
from tests.audit.audit_tables import KEYS, impressions, shuffled, write_folder
from tests.audit.small_report import REPORT


class Links(HTMLParser):
    """Tags, and every value of an attribute that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [value for name, value in attrs if name.rpartition(":")[2] in ("src", "href", "data", "srcset")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("audited") / "ads", shuffled(impressions(num_users=20, history=60)))


@pytest.fixture(scope="module")
def found(folder):
    return audit_table(folder, **KEYS)


@pytest.mark.slow
def test_the_page_has_every_number_of_the_text_report(found):
    shown = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page(found))))
    said = render(found)
    numbers = set(re.findall(r"\d[\d,.]*\d|\d", said))
    assert len(numbers) > 60
    assert not {number for number in numbers if number not in shown}


@pytest.mark.slow
def test_the_page_fetches_nothing_and_runs_nothing(found):
    links = Links(page(found))
    assert {"svg", "table"} <= links.tags
    assert not links.tags & {"script", "link", "iframe", "img", "object"}
    assert all(value.startswith("#") for value in links.fetched)


@pytest.mark.slow
def test_names_cannot_break_out_of_the_page():
    column = replace(REPORT.columns[0], name="<script>alert(1)</script>", example="<b>&</b>", broken_requests=1)
    table = replace(REPORT.table, name="<img src=x>")
    links = Links(page(replace(REPORT, columns=[column], table=table)))
    assert not links.tags & {"script", "img", "b"}


@pytest.mark.slow
def test_the_command_writes_the_page_and_prints_the_report(folder, tmp_path, capsys):
    words = ["audit", str(folder), "--request-key", "session", "--user-key", "member", "--html"]
    assert cli.main([*words, str(tmp_path / "audit.html")]) == 0
    assert "as BY_REQUEST" in capsys.readouterr().out
    assert (tmp_path / "audit.html").read_text().endswith("</html>\n")
    assert cli.main([*words, str(tmp_path / "no-such-folder" / "audit.html")]) == 2
    assert "found no folder" in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "audit.pdf")]) == 2
    assert "ends with .html required" in capsys.readouterr().err
