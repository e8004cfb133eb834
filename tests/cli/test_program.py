"""The command line as a program: found modules, several words to an option, help without heavy libraries, masked output."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup import cli
from reqdedup.cli import build_program, commands, output
from reqdedup.cli.options import Options, Subcommand, option, subcommand
from reqdedup.training.progress import TrainingProgress


@subcommand(help="try", description="try")
@click.argument("files", nargs=-1)
@option("--request", variadic=True, metavar="COLUMN...")
@option("--user", metavar="COLUMN")
@option("--force", is_flag=True)
def attempt(arguments: Options) -> int:
    return 0


def parsed(words: list[str]) -> dict:
    return attempt.make_context("attempt", words).params


def test_a_new_module_is_a_new_subcommand_without_a_list_of_them(tmp_path, monkeypatch):
    (tmp_path / "greeting.py").write_text(
        "from reqdedup.cli.options import subcommand\n"
        "from reqdedup.cli.output import say\n"
        "@subcommand(help='say hello', description='Say hello.')\n"
        "def greet(arguments):\n    say('hello')\n    return 0\n"
        "COMMANDS = (greet,)\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert "greet" in build_program().commands
    assert cli.main(["greet"]) == 0
    monkeypatch.delitem(sys.modules, "reqdedup.cli.commands.greeting")


def test_every_module_of_subcommands_has_some():
    modules = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    assert len(modules) >= 9
    for name in modules:
        assert __import__(f"reqdedup.cli.commands.{name}", fromlist=["COMMANDS"]).COMMANDS


@pytest.mark.parametrize(
    ("words", "request_columns", "files"),
    [
        (["--request", "a", "b", "--user", "u", "x"], ("a", "b"), ("x",)),
        (["x", "y", "--request", "a"], ("a",), ("x", "y")),
        (["--request", "a", "--force", "x"], ("a",), ("x",)),
        (["--request=a", "x"], ("a",), ("x",)),
        (["--request", "a", "--request", "b", "c"], ("a", "b", "c"), ()),
        (["--request", "a", "--", "x", "--user"], ("a",), ("x", "--user")),
        (["--request", "-1", "-2.5"], ("-1", "-2.5"), ()),
        ([], (), ()),
    ],
)
def test_an_option_takes_words_up_to_the_next(words, request_columns, files):
    found = parsed(words)
    assert (found["request"], found["files"]) == (request_columns, files)


@given(
    st.lists(st.sampled_from(["--request", "--user", "--force", "a", "b", "--", "-1", "--request=c", ""]), max_size=8)
)
def test_no_order_of_words_is_more_than_a_usage_error(words):
    try:
        found = parsed(words)
    except click.UsageError:
        return
    end = words.index("--") if "--" in words else len(words)
    plain = [word for word in words[:end] if not word.startswith("--")] + words[end + 1 :]
    taken = [*found["files"], *found["request"], *([found["user"]] if found["user"] is not None else [])]
    equal_signs = words[:end].count("--request=c")
    assert sorted(taken) == sorted([*plain, *["c"] * equal_signs])


def test_every_subcommand_has_a_line_of_help_an_example_and_json():
    def below(group: click.Group):
        for command in group.commands.values():
            yield from below(command) if isinstance(command, click.Group) else [command]

    found = list(below(build_program()))
    assert len(found) >= 20
    for command in found:
        assert isinstance(command, Subcommand)
        assert command.short_help
        assert {"quiet", "debug"} <= {one.name for one in command.params}
        if command.name == "completion":
            continue
        assert command.examples, command.name
        assert all(example.startswith("reqdedup ") for example in command.examples)
        names = {one.name for one in command.params}
        assert "json" in names
        assert {"catalog", "catalog_uri", "warehouse"} <= names or "file" in names, command.name  # urls: files alone
        deletes = any("--apply" in one.opts for one in command.params)
        of_weights = any("--slate" in one.opts for one in command.params)  # rerank sweep
        deleting = command.name in ("expire", "sweep", "delete-user", "drop", "retain") and not of_weights
        assert deletes == deleting, command.name
        help_text = command.get_help(click.Context(command, info_name=command.name, **command.context_settings))
        assert "catalog (default" in help_text or "file" in names


def test_help_and_version_are_exit_code_0(capsys):
    for words in (["--help"], ["-h"], ["health", "-h"], ["features", "drop", "--help"], ["--version"]):
        assert cli.main(words) == 0
        assert capsys.readouterr().out


def test_a_shell_is_given_its_completion(capsys, monkeypatch):
    monkeypatch.setenv("_REQDEDUP_COMPLETE", "bash_source")
    assert cli.main([]) == 0
    assert "_REQDEDUP_COMPLETE=bash_complete" in capsys.readouterr().out


def test_output_into_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m reqdedup.cli --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert "Traceback" not in done.stderr


def test_what_is_said_is_masked(capsys):
    output.say("from s3://AKID:TOPSECRET@bucket/x")
    output.print_json({"location": "ftp://me:TOPSECRET@host/x"})
    assert "TOPSECRET" not in capsys.readouterr().out


def test_progress_is_a_line_now_and_then_and_a_bar_on_a_terminal(capsys, monkeypatch):
    with output.ProgressLine() as progress:
        progress._printed -= 10
        progress("[half] of s3://a:TOPSECRET@b")
        progress("at once")
        progress._printed -= 10
        progress("compact lake.t", 1000, 2000)
    assert capsys.readouterr().err == "[half] of s3://a:***@b\ncompact lake.t: 1,000 of 2,000\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    with output.ProgressLine() as progress:
        for done in (1, 3):
            progress._printed -= 10
            progress(TrainingProgress(stage="training", step=done, num_steps=4, loss=0.5))
        assert progress._bar is not None
        (task,) = progress._bar.tasks
        assert (task.completed, task.total, task.description) == (3, 4, "loss 0.5000, 0 rows/s")
    drawn = capsys.readouterr().err
    assert "3 of 4" in drawn
    assert max(len(click.unstyle(line)) for line in re.split(r"[\r\n]", drawn)) <= 60
