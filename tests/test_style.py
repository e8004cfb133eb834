"""Rules of the house that a reader would otherwise check: lines of prose fit a screen, tests share helpers by helper modules."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 120
MAX_LINES = 400
PACKAGES = ("reqdedup", "assets", "pipelines", "warehouse", "benchmarks")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md")


def lines_of_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of the docstrings and comments of a Python file, but for tables, each with its number; of a file that has
    no long line, none."""
    text = path.read_text()
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= COLUMNS:
        return
    with path.open("rb") as file:
        found = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    comments = {token.start[0] for token in found if not re.match(r"# (type: ignore|noqa|fmt:)", token.string)}
    docstrings = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for number in sorted(comments | docstrings):
        if not lines[number - 1].lstrip().startswith("|"):
            yield number, lines[number - 1]


def lines_of_markdown(text: str) -> Iterator[tuple[int, str]]:
    """Lines of prose: no code blocks, no tables, no lines that a link makes long."""
    is_code = False
    for number, line in enumerate(text.splitlines(), start=1):
        is_code ^= line.lstrip().startswith("```")
        if not (is_code or line.startswith("|") or re.search(r"\]\(|https?://", line)):
            yield number, line


def test_lines_of_docstrings_and_comments_fit():
    long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in lines_of_prose(path)
        if len(line) > COLUMNS
    ]
    assert not long, f"at most {COLUMNS} columns; reflow the paragraph: {long}"


def test_lines_of_code_fit():
    """Those that the formatter leaves long: texts. Comments for a tool stay where that tool looks for them."""
    long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)}"
        for path in sorted((ROOT / "reqdedup").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > COLUMNS and not re.search(r"# (type: ignore|noqa)", line)
    ]
    assert not long, f"at most {COLUMNS} columns; split the text into two: {long}"


def test_a_module_is_one_idea():
    folders = (*PACKAGES, "tests", "notebooks")
    lines = {path: len(path.read_text().splitlines()) for one in folders for path in (ROOT / one).rglob("*.py")}
    long = [f"{path.relative_to(ROOT)}: {count}" for path, count in lines.items() if count > MAX_LINES]
    assert not long, f"at most {MAX_LINES} lines a file; what grows past that is usually two ideas: {long}"


def test_lines_of_markdown_fit():
    long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)}"
        for pattern in DOCUMENTS
        for path in sorted(ROOT.glob(pattern))
        for number, line in lines_of_markdown(path.read_text())
        if len(line) > COLUMNS
    ]
    assert not long, f"at most {COLUMNS} columns; reflow the paragraph: {long}"


def test_a_long_line_is_found_in_prose_alone(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(f'"""{"d" * 130}\n"""\nX = "{"s" * 130}"\n# {"c" * 130}\nY = 1\n"""{"a" * 130}"""\n')
    assert [number for number, line in lines_of_prose(path) if len(line) > COLUMNS] == [1, 4, 6]
    long = "w" * 130
    document = f"{long}\n| {long} |\n```\n{long}\n```\n[{long}](there)\n- {long}\n"
    assert [number for number, line in lines_of_markdown(document) if len(line) > COLUMNS] == [1, 7]


def test_no_test_module_imports_from_another():
    """What tests share stands in a module of its own, so that a test can be renamed, and one run does not load another."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if any(name.startswith("tests") and ".test_" in name for name in names):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, f"move the helpers into a module without `test_` in its name: {found}"
