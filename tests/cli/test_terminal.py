"""What a person sees: help, results and errors in the width of the terminal, colour there and nowhere else, interrupts."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup import cli
from reqdedup.cli import build_program, terminal
from reqdedup.cli.output import ProgressLine, warn
from reqdedup.cli.reference import commands, reference
from reqdedup.display import fit, format_table
from reqdedup.storage import open_catalog
from reqdedup.storage.iceberg.commit import StagedFiles

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = build_program()
EVERY = [path for path, _ in commands(PROGRAM)]
CONVERT = ["--user", "user", "--request", "request", "--item", "item", "--time", "at", "--time-unit", "s"]


def subcommand_at(path: tuple[str, ...]) -> click.Command:
    found: click.Command = PROGRAM
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


def too_wide(text: str, columns: int) -> list[str]:
    """Lines that are wider although they could be cut at a space."""
    lines = [click.unstyle(line) for line in re.split(r"[\r\n]+", text)]
    return [line for line in lines if len(line) > columns and len(line.split()) > 1]


@pytest.fixture(params=[60, 200])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with sixty rows of ten requests of five users in it, and its lake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REQDEDUP_DATA_DIR", str(tmp_path / "data"))
    rows = [
        {"user": r // 2, "request": r, "item": i, "at": 1_750_000_000 + r, "history_item_id": [r, 7], "click": i % 2}
        for r in range(10)
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path


def convert(*more: str) -> int:
    return cli.main(["convert", "rows.parquet", "--table", "lake.t", *CONVERT, "--buckets", "2", *more])


def catalog_of(folder: Path):
    data = folder / "data"
    return open_catalog(properties={"uri": f"sqlite:///{data}/catalog.db", "warehouse": f"file://{data}/tables"})


@pytest.mark.parametrize("path", [(), *EVERY], ids=" ".join)
def test_every_help_fits(path, columns, capsys):
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert too_wide(shown, columns) == []
    assert "\x1b" not in shown


def test_without_words_the_help_is_shown(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert "Commands:" in shown
    assert "reqdedup audit data/impressions --request-key request_id" in shown
    assert re.search(r"130 +interrupted", shown)
    assert cli.main(["features"]) == 0
    assert "promote" in capsys.readouterr().out


EXAMPLES = [one for path in EVERY for one in getattr(subcommand_at(path), "examples", ())]
EXAMPLES += [one for one in PROGRAM.examples if not one.startswith("#")]


@pytest.mark.parametrize("example", sorted(set(EXAMPLES)))
def test_every_example_parses(example):
    words = shlex.split(re.sub(r" >>? .*", "", example.replace("\\\n", " ")))[1:]
    command, context = PROGRAM, click.Context(PROGRAM, info_name="reqdedup")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = (
            command.make_context(name, list(words), parent=context) if not hasattr(command, "commands") else context
        )


def test_a_long_example_goes_on_behind_backslashes_and_is_the_same_command():
    example = "reqdedup x --a 'b c' d --force --table lake.t --request user session"
    lines = terminal.command_lines(example, 30)
    assert len(lines) > 2
    assert max(map(len, lines)) <= 30
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == shlex.split(example)


def test_a_wide_table_goes_on_below_beside_its_first_column():
    head, rows = ["name", "a", "b", "c"], [["x", 10, "y" * 20, 3], ["long name", 2000, "z", 4]]
    assert format_table(head, rows, width=200) == format_table(head, rows)
    narrow = format_table(head, rows, width=40)
    assert max(map(len, narrow.splitlines())) <= 40
    first, second = narrow.split("\n\n")
    assert (first.splitlines()[1].split(), second.splitlines()[1].split()) == (["x", "10", "y" * 20], ["x", "3"])


def test_lines_are_cut_at_spaces_and_words_stay_whole():
    path = "file:///" + "x" * 50
    text = f"a line of words that goes on\n  - {path} and more"
    assert fit(text, None) == text
    assert fit(text, 20).split("\n") == ["a line of words that", "  goes on", "  -", f"    {path}", "    and more"]


@pytest.mark.slow
def test_results_and_errors_fit(here, columns, capsys):
    assert convert() == 0
    for words in (
        ["health", "--table", "lake.t"],
        ["tables"],
        ["report", "--table", "lake.t"],
        ["audit", "rows.parquet", "--request-key", "request", "--user-key", "user"],
        ["delete-user", "1", "--namespace", "lake"],
        ["expire", "--table", "lake.t"],
    ):
        assert cli.main(words) == 0
    assert convert() == 2
    with pytest.raises(SystemExit):
        cli.main(["helth"])
    printed = capsys.readouterr()
    assert too_wide(printed.out, columns) == []
    assert too_wide(printed.err, columns) == []
    assert "\x1b" not in printed.out + printed.err
    assert "did you mean health?" in " ".join(printed.err.split())


@pytest.mark.slow
def test_a_pipe_without_a_width_gets_one_line_per_line(here, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert convert() == 0
    capsys.readouterr()
    assert convert() == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_quiet_leaves_the_result_alone(here, capsys):
    assert convert("-q") == 0
    printed = capsys.readouterr()
    assert "60 rows, 10 requests" in printed.out
    assert printed.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 200])
def test_rows_that_are_appended_again_are_warned_of(here, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert convert() == 0
    before = catalog_of(here).load_table("lake.t").current_snapshot().snapshot_id
    capsys.readouterr()
    assert convert("--append", "-q", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["repeated_rows"] == 60
    said = " ".join(printed.err.split())
    assert said.startswith("warning: all 60 rows were in lake.t already, with equal values in all columns")
    assert said.endswith(f"without them it is snapshot {before}")
    assert too_wide(printed.err, width) == []


def test_a_warning_is_one_line_and_stays_with_quiet(capsys):
    with click.Context(click.Command("x")) as context:
        context.params["quiet"] = True
        warn("mind s3://a:TOPSECRET@b")
    assert capsys.readouterr().err == "warning: mind s3://a:***@b\n"


def on_a_terminal(words: list[str], columns: int, **variables: str) -> tuple[int, str]:
    """Exit code, and what a pseudo-terminal of this width was sent."""
    main, of_child = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    subprocess.run(["stty", "cols", str(columns), "rows", "40"], stdin=of_child, check=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "reqdedup", *words],
        stdin=of_child,
        stdout=of_child,
        stderr=of_child,
        env={**environment, "TERM": "xterm", **variables},
    )
    os.close(of_child)
    sent = b""
    while True:
        try:
            sent += os.read(main, 65536)
        except OSError:  # the child is gone
            break
        if not sent:
            break
    os.close(main)
    return child.wait(), sent.decode()


@pytest.mark.slow
def test_a_narrow_terminal_has_colour_and_a_bar_in_its_width(here):
    code, sent = on_a_terminal(["convert", "rows.parquet", "--table", "lake.t", *CONVERT], 60)
    assert code == 0
    assert "━" in sent
    assert re.search(r"\x1b\[[0-9;]*m", sent)
    assert too_wide(re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", sent), 60) == []


@pytest.mark.slow
def test_a_wide_terminal_without_colour_has_none(here):
    code, sent = on_a_terminal(["health", "--table", "lake.t"], 200, NO_COLOR="1")
    assert code == 2
    assert "reqdedup health: a catalog required, found none at" in sent
    assert "\x1b[" not in sent
    assert too_wide(sent, 200) == []


def test_an_error_is_red_on_a_terminal_alone(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=is_terminal: answer)
        with pytest.raises(SystemExit):
            cli.main(["helth"])
        assert ("\x1b[31m" in capsys.readouterr().err) is is_terminal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "width"), [("ingest", 60), ("convert", 200), ("compact", 60), ("delete-user", 60), ("delete-user", 200)]
)
def test_ctrl_c_says_what_was_kept(command, width, here, capsys, monkeypatch):
    """A real SIGINT before and after a commit; what is said is what the catalog has."""
    monkeypatch.setenv("COLUMNS", str(width))

    def told() -> str:
        printed = capsys.readouterr()
        assert printed.out == ""
        assert too_wide(printed.err, width) == []
        return " ".join(printed.err.split())

    (here / "log.csv").write_text("userId,movieId,rating,timestamp\n1,10,5.0,1000000000\n")
    words = {
        "ingest": ["ingest", "log.csv", "--preset", "movielens", "--table", "lake.i"],
        "convert": ["convert", "rows.parquet", "--table", "lake.t", *CONVERT, "--append"],
        "compact": ["compact", "--table", "lake.t", "--force"],
        "delete-user": ["delete-user", "1", "--table", "lake.t", "--apply"],
    }[command]
    assert convert() == 0
    catalog = catalog_of(here)
    table = "lake.i" if command == "ingest" else "lake.t"
    before = catalog.load_table("lake.t").current_snapshot()
    commit = StagedFiles.commit

    def stop(*arguments, **options):
        signal.raise_signal(signal.SIGINT)

    def land_and_stop(*arguments, **options):
        commit(*arguments, **options)
        stop()

    capsys.readouterr()
    monkeypatch.setattr(StagedFiles, "commit", stop)
    assert cli.main(words) == 130
    said = told()
    assert f"reqdedup {command}: interrupted; " in said
    if command == "ingest":
        assert "nothing was kept: lake.i was not made" in said
        assert not catalog.table_exists("lake.i")
    else:
        assert "lake.t is as it was" in said
        assert catalog.load_table("lake.t").current_snapshot() == before
    monkeypatch.setattr(StagedFiles, "commit", land_and_stop)
    assert cli.main(words) == 130
    said = told()
    landed = {
        "ingest": "the commit had landed: lake.i has the new rows",
        "convert": "the commit had landed: lake.t has the new rows",
        "compact": "lake.t: 1 commit landed and stay, of up to 32 buckets each; all else is as it was",
        "delete-user": "the users are gone from lake.t",
    }[command]
    assert landed in said
    assert catalog.load_table(table).current_snapshot() != before


def test_an_interrupt_elsewhere_is_said_too(here, capsys, monkeypatch):
    assert convert() == 0

    def stop(*arguments, **options):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("reqdedup.storage.table_health", stop)
    assert cli.main(["health", "--table", "lake.t"]) == 130
    assert "interrupted; tables are as before their last commit" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_its_completion(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    assert f"_REQDEDUP_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_names_commands_and_options(capsys, monkeypatch):
    for words, wanted in (("reqdedup he", "plain,health"), ("reqdedup health --no", "plain,--no-users")):
        monkeypatch.setenv("_REQDEDUP_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert cli.main([]) == 0
        assert wanted in capsys.readouterr().out.split()


def test_the_page_of_the_command_line_is_current():
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "python -m reqdedup.cli.reference docs/cli.md"


TOTALS = {"engine", "tasks", "retries", "bytes_moved"}
KEYS = {
    "tables": {"table", "layout", "rows", "bytes", "files", "snapshot_id"},
    "health": {"table", "layout", "rows", "users", "bytes", "files", "small_files", "buckets", "advice"},
    "report": {"table", "column", "level", "rows", "requests", "compressed_bytes", "store_once_bytes"},
    "convert": {"table", "layout", "rows", "requests", "bytes", "checksum", "catalog", "notes", "is_append"} | TOTALS,
    "compact": {"table", "buckets", "left_alone", "rows", "files", "bytes", "snapshot_id"} | TOTALS,
    "expire": {"table", "expired", "kept", "files", "bytes", "dry_run", "realigned"},
    "sweep": {"table", "files", "bytes", "young", "dry_run"},
    "delete-user": {"dry_run", "erased", "found", "tables", "not_searched"} | TOTALS,
    "sample": {"table", "strata", "written"},
    "rebucket": {"table", "num_buckets", "old_buckets", "rows", "feature_tables"} | TOTALS,
    "audit": {"verdict", "columns", "layouts", "settings"},
}


@pytest.mark.slow
def test_json_is_one_document_with_keys_that_stay(here, capsys):
    named = ["--table", "lake.t"]
    for command, words in {
        "convert": ["rows.parquet", *named, *CONVERT, "--buckets", "2"],
        "tables": [],
        "health": named,
        "report": named,
        "compact": named,
        "expire": named,
        "sweep": named,
        "delete-user": ["1", *named],
        "sample": [*named, "--rate", "0.5", "--to", "lake.s"],
        "rebucket": [*named, "--buckets", "4"],
        "audit": ["rows.parquet", "--request-key", "request"],
    }.items():
        capsys.readouterr()
        assert cli.main([command, *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        keys = set(found[0] if isinstance(found, list) else found)
        assert KEYS[command] <= keys, (command, KEYS[command] - keys)
        assert command != "sample" or found["written"].keys() >= TOTALS


def test_progress_shows_nothing_with_quiet(capsys):
    with click.Context(click.Command("x")) as context:
        context.params["quiet"] = True
        with ProgressLine() as progress:
            progress._printed -= 10
            progress("half")
    assert capsys.readouterr().err == ""
