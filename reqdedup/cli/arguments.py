"""Options that subcommands share, and the types of their values."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from reqdedup.cli import values

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` returns."""

LAYOUTS = ("arrival", "by_request", "shuffled", "sorted", "sorted_large_pages")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """A subcommand with --json and the options that name the catalog; `run` returns the exit code."""
    command = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog="example" + ("s" if len(examples) > 1 else "") + ":\n  " + "\n  ".join(examples),
        formatter_class=ExamplesFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    catalog = command.add_argument_group("catalog", "Default: SQLite and local files under warehouse/data.")
    catalog.add_argument("--catalog-uri", metavar="URI", help="for example sqlite:///path/catalog.db")
    catalog.add_argument("--warehouse", metavar="DIR", help="folder or s3:// location of the tables' files")
    catalog.add_argument("--catalog", metavar="NAME", help="a catalog of your pyiceberg configuration instead")
    return command


class CommandParser(argparse.ArgumentParser):
    """argparse's, which names an unknown option or command first, with the closest that there is and the right usage.

    By itself argparse would say what is missing where an option is misspelled, and show the usage of the whole program.
    """

    commands: Commands | None = None

    # argparse names its return type privately and gives it type variables; the object is the same.
    def add_subparsers(self, **options: Any) -> Commands:  # type: ignore[override]
        self.commands = super().add_subparsers(**options)
        return self.commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if self.commands is not None:
            self._check_command(words)
        else:
            self._check_options(words)
        namespace, rest = super().parse_known_args(words, namespace)
        if rest and self.commands is None:
            self.error(f"nothing more required, found {' '.join(rest)}")
        return namespace, rest

    def _check_command(self, words: list[str]) -> None:
        assert self.commands is not None
        there = list(self.commands.choices)
        found = next((word for word in words if not word.startswith("-")), None)
        if found is not None and found not in there:
            self.error(f"one of {', '.join(there)} required, found {found}{_closest(found, there)}")

    def _check_options(self, words: list[str]) -> None:
        there = list(self._option_string_actions)
        for word in words:
            name = word.partition("=")[0]
            if name == "--":
                return
            if name.startswith("--") and not any(option.startswith(name) for option in there):
                self.error(f"an option of {self.prog} required, found {name}{_closest(name, there)}")


def _closest(found: str, there: Sequence[str]) -> str:
    close = difflib.get_close_matches(found, there, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class ExamplesFormatter(argparse.HelpFormatter):
    """Descriptions are wrapped, examples stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example"):
            return text
        return super()._fill_text(text, width, indent)


def add_table(command: argparse.ArgumentParser, help: str = "a table") -> None:
    command.add_argument("--table", required=True, metavar="NAMESPACE.NAME", help=help)


def add_tables(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--table", action="append", required=True, metavar="NAMESPACE.NAME", help="a table; repeat it for more"
    )


def add_apply(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--apply", action="store_true", help="do it; without this nothing changes and what would go is said"
    )


def checked(parse: Callable[..., Any], **bounds: Any) -> Callable[[str], Any]:
    """A parser of `reqdedup.cli.values` as argparse wants it."""

    def value(text: str) -> Any:
        try:
            return parse(text, **bounds)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return value


positive = checked(values.whole)
buckets = checked(values.whole, most=values.MOST_BUCKETS)
number = checked(values.number)
age = checked(values.age)
pair = checked(values.pair)
