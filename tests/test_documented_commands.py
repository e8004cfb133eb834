"""Every command that a document prints is executed: here, line by line, or by the test that docs/commands.toml names."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reqdedup as rd
from reqdedup import cli
from tests.serving.http.servers import Server

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES.remove("docs/cli.md")  # made from the program; tests/cli/test_terminal.py has its examples
LISTED = tomllib.loads((ROOT / "docs/commands.toml").read_text())["command"]


def commands(document: str) -> list[str]:
    """Lines of the document's sh blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"(^|\s+)#.*", "", line) for b in blocks for line in b.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.startswith("export ")]


def listed(document: str, command: str) -> list[dict]:
    return [one for one in LISTED if re.fullmatch(one["matching"], command) and document in one.get("in", [document])]


def executed_here(document: str) -> list[str]:
    """Commands of reqdedup that docs/commands.toml does not name: those that the walk below runs."""
    return [one for one in commands(document) if "reqdedup " in one and not listed(document, one)]


@pytest.mark.parametrize("document", PAGES)
def test_every_command_is_executed_or_listed_with_what_executes_it(document):
    here = executed_here(document) if document in WALKED else []
    left = [one for one in commands(document) if one not in here and not listed(document, one)]
    assert not left, f"{document}: name in docs/commands.toml the test that executes it, or the reason: {left}"


@pytest.mark.parametrize("one", LISTED, ids=lambda one: one["matching"])
def test_what_the_list_says_is_there(one):
    assert ("test" in one) != ("reason" in one), "a test executes it, or a reason says why none does"
    assert any(re.fullmatch(one["matching"], command) for page in PAGES for command in commands(page)), (
        "nobody prints it"
    )
    if "test" in one:
        file, _, function = one["test"].partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, one["test"]


def impressions(first: int, *, seconds: bool) -> pa.Table:
    """160 rows of 20 users, two requests each; the table of docs/adopt.md."""
    start = datetime(2026, 11, 1)
    rows = []
    for request in range(first, first + 40):
        user = 4711 if request % 20 == 0 else request % 20
        at = start + timedelta(minutes=request)
        rows += [
            {
                "user_id": user,
                "request_id": request,
                "item_id": (request * 7 + i) % 30,
                "ts": int(at.timestamp()) if seconds else at,
                "country": user % 3,
                "history": [(user + k) % 30 for k in range(3)],
                "click": int(i == request % 4),
            }
            for i in range(4)
        ]
    return pa.Table.from_pylist(rows)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a reader stands in: the tables and files that the pages name, an empty lake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REQDEDUP_DATA_DIR", str(tmp_path / "lake"))
    for number, name in enumerate(("impressions", "path/to/parquet-folder", "data/impressions", "data/2026-02-02")):
        (tmp_path / name).mkdir(parents=True)
        rows = impressions(40 if number == 3 else 0, seconds=name == "impressions")
        pq.write_table(rows, tmp_path / name / "part.parquet")
    (tmp_path / "ads.toml").write_text('user = "user_id"\nrequest = "request_id"\nitem = "item_id"\ntime = "ts"\n')
    text = (ROOT / "docs/adopt.md").read_text()
    (tmp_path / "columns.toml").write_text(re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0])
    return tmp_path


def convert_first() -> None:
    """What docs/maintenance.md takes to be there: the table of docs/convert.md, and features beside it."""
    cli.main(shlex.split(executed_here("docs/convert.md")[0])[1:])
    count = rd.Column(name="visits", dtype="int32", level=rd.Level.REQUEST, doc="how often")
    table = rd.open("lake").table("lake.engagements")
    table.feature("lake.request_features", count, lambda requests: [1] * requests.num_rows)


WALKED = {
    "README.md": None,
    "docs/adopt.md": None,
    "docs/audit.md": None,
    "docs/convert.md": None,
    "docs/maintenance.md": convert_first,
}
"""Pages whose commands of reqdedup run here in their order, and what is done before."""


@pytest.mark.slow
@pytest.mark.parametrize("document", WALKED)
def test_the_commands_of_a_page_run_in_their_order(document, here, capsys):
    first = WALKED[document]
    if first:
        first()
    lines = executed_here(document)
    assert lines
    for line in lines:
        words = shlex.split(line.replace("--steps 200", "--steps 4 --ranks 1"))
        assert words[0] in ("reqdedup", ".venv/bin/reqdedup")
        code = cli.main(words[1:])
        assert code == 0, f"{line}\n{capsys.readouterr().err}"
    if document == "docs/adopt.md":
        assert "<svg" in (here / "audit.html").read_text()
        ask_the_server(here)


def ask_the_server(here: Path) -> None:
    """`reqdedup serve` and `curl` of docs/adopt.md, the port chosen by the system."""
    (serve,) = [shlex.split(one)[2:] for one in commands("docs/adopt.md") if one.startswith("reqdedup serve ")]
    (curl,) = [shlex.split(one) for one in commands("docs/adopt.md") if one.startswith("curl ")]
    with Server(*(str(here / word) if "/" in word else word for word in serve)) as server:
        words = [word.replace("localhost:8080", f"127.0.0.1:{server.port}") for word in curl]
        answer = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert len(answer["logits"]["click"]) == 2, answer


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    """Each of about 30 lines, as a program of its own; in this process, which has loaded torch already."""
    monkeypatch.chdir(tmp_path)
    first = (("impressions", "impressions"), ("audit_and_convert", "impressions"))
    for name, *words in (*first, ("train_on_it", "4"), ("ask_it", "7", "3", "5", "9")):
        script = ROOT / "examples" / f"{name}.py"
        assert len(script.read_text().splitlines()) <= 32
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        capsys.readouterr()
        runpy.run_path(str(script), run_name="__main__")
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == ["3", "5", "9"]


@pytest.mark.slow
def test_pre_commit_runs_the_hooks_and_refuses_what_they_refuse(tmp_path, monkeypatch):
    """pre-commit itself, in a repository with one file; mypy, which wants all of ours, is left to `make check`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SKIP", "mypy")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".pre-commit-config.yaml").write_bytes((ROOT / ".pre-commit-config.yaml").read_bytes())
    for text, code in (("x = 1\n", 0), ("import os\nx=1\n", 1)):
        (tmp_path / "one.py").write_text(text)
        for command in (["git", "init", "-q"], ["git", "add", "one.py", ".pre-commit-config.yaml"]):
            subprocess.run(command, check=True)
        command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert re.findall(r"^(ruff|ruff format|mypy)\.+.*(Passed|Failed|Skipped)$", done.stdout, re.MULTILINE) == [
            ("ruff", "Failed" if code else "Passed"),
            ("ruff format", "Failed" if code else "Passed"),
            ("mypy", "Skipped"),
        ]


def test_the_hooks_before_a_commit_are_the_tools_of_make_check():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: (.*)", text)
    check = (ROOT / "Makefile").read_text().split("\ncheck: ")[1].split("\n\n")[0].replace("$(BIN)", ".venv/bin")
    assert {" ".join(one.split()[:2]) for one in entries} == {
        ".venv/bin/ruff check",
        ".venv/bin/ruff format",
        ".venv/bin/mypy",
    }
    assert all(entry.split()[0] in check for entry in entries)
    assert "http" not in text
