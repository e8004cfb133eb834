"""The commands that the documents print exist, and every claimed figure names the file it came from."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest

from benchmarks import report
from reqdedup.cli import build_program

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
GUIDES = tuple(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))


def commands(document: str) -> list[str]:
    """Shell commands of the document: lines of sh blocks, and code spans that begin with a command of ours."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    found = []
    for line in lines:
        for part in re.split(r"&&|;|\|", line):
            words = part.split("#")[0].removeprefix("$ ").strip()
            if re.match(r"(\S*/)?(make|reqdedup|dg|dagster)\s+\S|\S*python\S* -m ", words):
                found.append(words)
    return found


def cases(pattern: str, documents: tuple[str, ...] = DOCUMENTS) -> list[str]:
    every = [command for document in documents for command in commands(document)]
    return sorted({command for command in every if re.match(pattern, command)})


@cache
def help_text(*command: str) -> str:
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def options(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]


def test_the_readme_names_the_two_commands_first():
    first = commands("README.md")[:2]
    assert [command.split()[:2] for command in first] == [["make", "run"], ["make", "test"]]


@pytest.mark.parametrize("command", cases(r"make\s"))
def test_make_targets_exist(command):
    targets = [word for word in shlex.split(command)[1:] if "=" not in word]
    dry = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert dry.returncode == 0, dry.stderr
    described = help_text_of_make()
    assert set(targets) <= described, f"`make help` does not list {set(targets) - described}"


@cache
def help_text_of_make() -> set[str]:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^  make ([a-z-]+)", shown, re.MULTILINE))


@pytest.mark.parametrize("variable", sorted(set(re.findall(r"\b[A-Z]{3,}(?==)", " ".join(cases(r"make\s"))))))
def test_make_variables_are_used(variable):
    assert (
        f"$({variable})" in (ROOT / "Makefile").read_text() or f"$(if $({variable})" in (ROOT / "Makefile").read_text()
    )


def subcommand_of(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The subcommand that these words name, its context, and the words after it."""
    command: click.Command = build_program()
    context = click.Context(command, info_name="reqdedup")
    while isinstance(command, click.Group) and words and not words[0].startswith("-") and not words[0].isupper():
        name, below, words = command.resolve_command(context, words)  # raises if there is none
        assert below is not None
        command, context = below, click.Context(below, info_name=name, parent=context)
    return command, context, words


@pytest.mark.slow
@pytest.mark.parametrize("command", cases(r"(\S*/)?reqdedup\s"))
def test_subcommands_and_options_of_reqdedup_exist(command):
    words = shlex.split(command)[1:]
    if any(re.search(r"[\[\]<>…]|\.\.\.", word) for word in words) or len(words) == 1:
        shown = help_text(sys.executable, "-m", "reqdedup.cli", *[word for word in words[:1] if word[0] != "-"])
        assert all(option in shown for option in options(words))
    else:
        command, context, words = subcommand_of(words)
        command.make_context(context.info_name, words, parent=context.parent)  # raises if it does not parse


@pytest.mark.parametrize("command", cases(r"(\S*/)?reqdedup\s", GUIDES))
def test_commands_in_the_guides_know_their_options(command):
    found, context, _ = subcommand_of(shlex.split(command)[1:])
    known = {name for parameter in found.get_params(context) for name in parameter.opts}
    missing = set(options(shlex.split(command)[1:])) - known
    assert not missing, f"{command}: {missing} unknown"


@pytest.mark.slow
@pytest.mark.parametrize("command", cases(r"\S*python\S* -m "))
def test_modules_run_from_the_repository_know_their_options(command, capsys):
    words = shlex.split(command.replace("[", "").replace("]", ""))
    module = words[words.index("-m") + 1]
    if module.split(".")[0] in ("pip", "venv"):
        return
    main = getattr(importlib.import_module(module), "main", None)
    if main is None:
        shown = help_text(sys.executable, "-m", module)
    else:  # here, which has loaded torch already
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        shown = capsys.readouterr().out
    missing = [option for option in options(words[words.index("-m") + 2 :]) if option not in shown]
    assert not missing, f"python -m {module} does not know {missing}"


@pytest.mark.slow
@pytest.mark.parametrize("command", cases(r"(\S*/)?(dg|dagster)\s"))
def test_dagster_commands_know_their_options(command):
    from dagster._cli import create_dagster_cli
    from dagster_dg_cli.cli import create_dg_cli

    program, *words = shlex.split(command)
    found: click.Command = create_dg_cli() if Path(program).name == "dg" else create_dagster_cli()
    # asked of the objects: with this version of click, `dg launch --help` shows no options
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        found = found.get_command(click.Context(found), words.pop(0))
        assert found is not None, f"no such subcommand: {command}"
    known = {option for parameter in found.params for option in parameter.opts}
    missing = set(options(words)) - known
    assert not missing, f"{command}: {missing} unknown, there are {sorted(known)}"


@pytest.mark.parametrize("document", [report.README, report.PAGE], ids=lambda path: path.name)
def test_every_claim_names_the_result_it_came_from(document):
    text = document.read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and "benchmarks/" in line]
    for row in rows:
        for path in re.findall(r"benchmarks/[\w./-]+", row):
            assert (ROOT / path).exists(), f"{path} is named in the table and does not exist:\n{row}"
    claims = claims_table(text)
    wanted = report.headlines() if document == report.README else report.CLAIMS
    assert len(claims) == sum(claim.line(report.RESULTS) is not None for claim in wanted)
    assert not [row for row in claims if "benchmarks/results/" not in row], "a claim without its result file"


@pytest.mark.parametrize("document", [report.README, report.PAGE], ids=lambda path: path.name)
def test_every_figure_is_the_one_in_its_result_file(document):
    assert document.read_text() == report.with_table(document), (
        "python -m benchmarks.report --write puts the measured figures there"
    )


def test_a_measured_figure_that_changed_shows_in_the_table(tmp_path):
    for path in report.RESULTS.glob("*.jsonl"):
        (tmp_path / path.name).write_text(path.read_text())
    rows = [json.loads(line) for line in (tmp_path / "storage_layouts.jsonl").read_text().splitlines()]
    for row in rows:
        row["value"] *= 2
    (tmp_path / "storage_layouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, after = (claims_table(report.with_table(report.PAGE, folder)) for folder in (report.RESULTS, tmp_path))
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert changed
    assert all("storage_layouts.jsonl" in line for line in changed)


def claims_table(text: str) -> list[str]:
    """Body rows of every table whose head has a column `claim`."""
    body, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip().lower() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif "claim" in cells:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            body.append(line)
    return body


@pytest.mark.parametrize("document", DOCUMENTS + GUIDES)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / document).read_text())
    folder = (ROOT / document).parent
    missing = [target for target in targets if "://" not in target and not (folder / target).exists()]
    assert not missing


def test_the_guide_to_the_audit_has_the_figures_of_the_results():
    rows = [json.loads(line) for line in (ROOT / "benchmarks/results/storage_audit.jsonl").read_text().splitlines()]
    text = (ROOT / "docs/audit.md").read_text()
    for layout in {row["variant"] for row in rows}:
        cells = [
            f"{row['value']:.1%} ({max(map(abs, row['spread'])):.1%}), {row['intervals_that_held']} of {row['runs']}"
            for row in rows
            if row["variant"] == layout
        ]
        assert f"| {layout.upper()} | {' | '.join(cells)} |" in text
