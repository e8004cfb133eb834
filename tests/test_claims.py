"""Every figure that a document prints is carried by a result row or a test, and agrees with it (docs/claims.toml)."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.claim import results_of

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
CLAIMS = tomllib.loads((ROOT / "docs/claims.toml").read_text())["claim"]
FIGURE = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:x(?!\w)|%)")


def places(claim: dict, document: str) -> list[tuple[int, int]]:
    """Where the claim stands in the document, its figures as the result rows have them."""
    if "matching" in claim:
        return [found.span() for found in re.finditer(claim["matching"], document)]
    rows = {name: results_of(file)[text, variant] for name, (file, text, variant) in claim.get("rows", {}).items()}
    text = claim["text"].format(**rows) if rows else claim["text"]
    words = map(re.escape, text.split())  # a paragraph may be broken anywhere
    return [found.span() for found in re.finditer(r"\s+".join(words), document)]


def figures_without_a_claim(document: str, claims: list[dict]) -> list[str]:
    """`line: figure` of what no claim of this document covers."""
    covered = [span for claim in claims for span in places(claim, document)]
    return [
        f"line {document.count(chr(10), 0, found.start()) + 1}: {found.group()}"
        for found in FIGURE.finditer(document)
        if not any(start <= found.start() < end for start, end in covered)
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_figure_of_a_document_is_in_the_map(name):
    claims = [claim for claim in CLAIMS if claim["document"] == name]
    missing = figures_without_a_claim((ROOT / name).read_text(), claims)
    assert not missing, f"{name}: figures that nothing carries; name their rows or test in docs/claims.toml: {missing}"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.get("text") or claim["matching"])
def test_what_the_map_says_is_there(claim):
    assert claim["document"] in DOCUMENTS
    assert ("rows" in claim) != ("test" in claim), "rows or a test carry a figure, one of them"
    assert places(claim, (ROOT / claim["document"]).read_text()), "not found in the document, or another figure now"
    if "test" in claim:
        file, _, function = claim["test"].partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, claim["test"]


def test_a_figure_that_nobody_measured_is_found():
    claim = {"text": "saves 5.0x"}
    assert figures_without_a_claim("it saves 5.0x\nand 97% of 12x16 (0x1F)", [claim]) == ["line 2: 97%"]
    assert figures_without_a_claim("it saves 5.0x", []) == ["line 1: 5.0x"]
