"""The documentation builds as a site without a warning, holds every page, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""Tags whose address a browser fetches by itself, and the attribute that holds it."""

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a browser would fetch for a page, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        value = dict(attrs).get(LOADED.get(tag, ""))
        if value:
            self.loaded.append(value)

    def handle_data(self, data: str) -> None:
        self.words += data


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder), *options]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_document_is_a_page_and_stands_in_the_navigation(site):
    documents = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/decisions").glob("*.md")]
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in documents]
    pages += ["index.html", "changelog.html", "decisions/index.html"]
    assert [page for page in pages if not (site / page).exists()] == []
    guides, decisions = ((site / page).read_text() for page in ("library.html", "decisions/index.html"))
    named = set(re.findall(r'href="(?:\.\./)?([\w/-]+\.html)"', guides))
    named |= {f"decisions/{name}" for name in re.findall(r'href="([\w-]+\.html)"', decisions)}
    assert set(pages) - named <= {
        "decisions/index.html",
        "library.html",
        "cli.html",
        "api.html",
        "study.html",
        "claims.html",
    }


def test_no_page_asks_another_host_for_anything(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    asked = {
        (path.name, address)
        for path in pages
        for address in Page(path.read_text()).loaded
        if re.match(r"(https?:)?//", address)
    }
    assert asked == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text()), sheet.name
    # the theme's script fetches a drawer of diagrams from a CDN for these alone
    assert not [path.name for path in pages if 'class="mermaid"' in path.read_text()]


def test_the_site_is_searched_without_a_server(site):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("a browser required, found no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto((site / "decisions" / "index.html").as_uri())
        page.get_by_role("textbox", name="Search").click()
        page.keyboard.type("compaction")
        page.get_by_text(re.compile(r"[0-9]+ matching documents")).wait_for()
        browser.close()


def test_the_reference_has_the_names_and_what_their_docstrings_say(site):
    words = " ".join(Page((site / "api.html").read_text()).words.split())
    for name in ("reqdedup.lake.open", "delete_user", "RequestLoader", "convert_table", "Ranker"):
        assert name in words
    assert "The lake at a folder or a catalog's uri" in words


def test_a_broken_link_is_an_error(tmp_path):
    """In a copy of the configuration with a page of its own."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Start\n\n[gone](nowhere.md)\n")
    text = (ROOT / "mkdocs.yml").read_text()
    assert "strict: true" in text
    checks = text[text.index("validation:") : text.index("nav:")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: small\nstrict: true\n{checks}")
    built = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert built.returncode == 1
    assert "nowhere.md" in built.stderr
