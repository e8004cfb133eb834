"""docs/cli.md, written from the program: `python -m reqdedup.cli.reference docs/cli.md`."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from reqdedup.cli.command import EXIT_CODES, build_program
from reqdedup.cli.options import CATALOG, SHARED, Group, Option, Subcommand
from reqdedup.cli.terminal import command_lines

WIDTH = 118
HEAD = """# The command line

Written from the program by `python -m reqdedup.cli.reference docs/cli.md`; a test sees that it is current. The same
texts are the answers of `reqdedup --help` and `reqdedup COMMAND --help`; `python -m reqdedup` is `reqdedup`.

Results go to standard output, progress, notes, warnings and errors to standard error: `--json` prints one JSON document
and nothing else there, with keys that stay. On a terminal there is colour and a bar with the time left, in a pipe there
is neither; `NO_COLOR=1` takes the colour away, `COLUMNS` sets a width. What deletes for good looks only, until it gets
`--apply`.

| exit code | means |
|---|---|
"""
COMPLETION = """
## Completion of commands and options by the shell

```sh
reqdedup completion bash >> ~/.bashrc
reqdedup completion zsh >> ~/.zshrc
reqdedup completion fish > ~/.config/fish/completions/reqdedup.fish
```

## Options of every command

"""


def reference() -> str:
    """The whole page."""
    program = build_program()
    parts = [HEAD + "\n".join(f"| {code} | {text} |" for code, text in EXIT_CODES) + "\n", COMPLETION]
    sample = program.commands["health"]
    shared = {one.name: one for one in sample.params}
    parts.append(_options([shared[name] for name in SHARED]) + f"\n\nThe last three name the {CATALOG}.\n")
    for path, command in commands(program):
        parts.append(_section(path, command))
    return "".join(parts)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands below a group with their words, groups before what they hold."""
    for name, command in sorted(group.commands.items()):
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def _section(path: tuple[str, ...], command: click.Command) -> str:
    context = _context(command, path)
    usage = context.get_usage().removeprefix("Usage: ")
    prose = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", _escaped(command.help or ""))
    prose = "\n".join(textwrap.wrap(prose, 120, break_long_words=False, break_on_hyphens=False))
    text = f"\n{'#' * (1 + len(path))} reqdedup {' '.join(path)}\n\n{prose}\n"
    if isinstance(command, Group):
        return text
    assert isinstance(command, Subcommand)
    text += f"\n```\n{' '.join(usage.split())}\n```\n"
    shared = {"quiet", "debug", *(SHARED if "catalog" in {one.name for one in command.params} else ())}
    own = [one for one in command.get_params(context) if isinstance(one, Option) and one.name not in shared]
    if own:
        text += "\n" + _options(own) + "\n"
    lines = [line for one in command.examples for line in command_lines(one, WIDTH, indent="")]
    return text + "\n```sh\n" + "\n".join(lines) + "\n```\n" if lines else text


def _options(options: Sequence[click.Parameter]) -> str:
    rows = ["| option | what |", "|---|---|"]
    for one in options:
        record = one.get_help_record(click.Context(click.Command("x")))
        assert record is not None
        heading = getattr(one, "heading", "") if isinstance(one, Option) and one.name not in SHARED else ""
        rows.append(f"| `{record[0].replace('|', ', ')}` | {_escaped(' '.join(record[1].split()) or heading)} |")
    return "\n".join(rows)


def _escaped(text: str) -> str:
    """For a cell of a table and for prose: what Markdown would take for markup stands as it is."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _context(command: click.Command, path: tuple[str, ...]) -> click.Context:
    name = " ".join(("reqdedup", *path))
    return click.Context(command, info_name=name, terminal_width=WIDTH, **command.context_settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m reqdedup.cli.reference", description="The command line as Markdown."
    )
    parser.add_argument("file", nargs="?", default="docs/cli.md", help="what is written")
    Path(parser.parse_args().file).write_text(reference())
