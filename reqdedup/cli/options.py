"""What a subcommand is made of: its options, their types, and the sentences for a wrong one.

    @subcommand(help="...", description="...", examples=["reqdedup compact --table a.b"])
    @tables_option()
    @click.option("--force", is_flag=True, help="those too that need it not")
    def compact(arguments: Options) -> int:

The function gets all its options as attributes, --json and those that name the lake among them, and returns the exit
code. -q and --debug are everywhere, and read in `output` and `command`. An option with `variadic=True` takes several
words, as in `--request user session`.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import click

from reqdedup.cli import values
from reqdedup.cli.terminal import command_lines, styled
from reqdedup.display import fit

LAYOUTS = ("arrival", "by_request", "shuffled", "sorted", "sorted_large_pages")
Options = SimpleNamespace
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Formatter(click.HelpFormatter):
    """click's, with headings that stand out on a terminal."""

    def write_heading(self, heading: str) -> None:
        lines = fit(f"{heading}:", self.width - self.current_indent).split("\n")
        self.write("".join(f"{'':{self.current_indent}}{styled(line, sys.stdout, bold=True)}\n" for line in lines))


click.Context.formatter_class = Formatter
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Checked(click.ParamType):
    """A type whose values are read by a function of `reqdedup.cli.values`."""

    name = "value"

    def __init__(self, parse: Callable[..., Any], **bounds: Any) -> None:
        self._parse, self._bounds = parse, bounds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # a default
        try:
            return self._parse(value, **self._bounds)
        except ValueError as error:
            return self.fail(str(error), param, ctx)


class OneOf(click.Choice[str]):
    """One of some words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in self.choices:
            close = closest(str(value), list(self.choices))
            self.fail(f"one of {', '.join(self.choices)} required, found {value!r}{close}", param, ctx)
        return value


POSITIVE, NUMBER = Checked(values.whole), Checked(values.number)
BYTES = Checked(values.whole, least=0, most=2**63 - 1)
BUCKETS = Checked(values.whole, most=values.MOST_BUCKETS)
AGE, PAIR, SHARE = Checked(values.age), Checked(values.pair), Checked(values.share)


class Option(click.Option):
    """click's, with a heading that it stands under in the help, and with several words if it is variadic."""

    def __init__(self, *arguments: Any, heading: str = "", variadic: bool = False, **options: Any) -> None:
        self.heading, self.variadic = heading, variadic
        super().__init__(*arguments, **{"multiple": True, **options} if variadic else options)


class Subcommand(click.Command):
    """click's, with our sentences for a misspelled option and for a word too many, and headings in the help."""

    def __init__(self, name: str, *, examples: Sequence[str] = (), **options: Any) -> None:
        self.examples = examples
        settings = {**SETTINGS, "allow_extra_args": True}
        super().__init__(name, context_settings=settings, options_metavar="[-h] [OPTIONS]", **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        self._check_options(ctx, args)
        try:
            rest = super().parse_args(ctx, self._spelled_out(args))
        except click.NoSuchOption as error:
            number = "; write -- before a negative number" if re.fullmatch(r"-[0-9]", error.option_name) else ""
            ctx.fail(f"an option of {ctx.command_path} required, found {error.option_name}{number}")
        except click.BadOptionUsage as error:
            ctx.fail(f"a value of {error.option_name} required, found none")
        if ctx.args:
            ctx.fail(f"nothing more required, found {' '.join(ctx.args)}")
        return rest

    def _spelled_out(self, words: list[str]) -> list[str]:
        """`--request a b` as `--request a --request b`, up to the next option."""
        variadic = {name for one in self.params if isinstance(one, Option) and one.variadic for name in one.opts}
        spelled: list[str] = []
        option, is_first = "", False
        for position, word in enumerate(words):
            if word == "--":
                return [*spelled, *words[position:]]
            if word.startswith("-") and not re.match(r"-[0-9.]", word):
                option, is_first = word if word in variadic else "", True
            elif option and not is_first:
                spelled.append(option)
            else:
                is_first = False
            spelled.append(word)
        return spelled

    def _check_options(self, ctx: click.Context, words: list[str]) -> None:
        known = {name: one for one in self.get_params(ctx) for name in one.opts if name.startswith("--")}
        seen: set[str] = set()
        before = ""  # an option whose value comes next: click itself would take another option for it
        for word in words:
            name = word.partition("=")[0]
            if before and word.startswith("--"):
                ctx.fail(f"a value of {before} required, found {word}; {before}={word} if it is meant")
            if name == "--":
                return
            if name.startswith("--") and name not in known:
                ctx.fail(f"an option of {ctx.command_path} required, found {name}{closest(name, list(known))}")
            one = known.get(name)
            takes_value = one is not None and not getattr(one, "is_flag", False)
            if takes_value and not getattr(one, "multiple", False):
                if name in seen:
                    ctx.fail(f"{name} once required, found it twice")
                seen.add(name)
            before = word if takes_value and word == name else ""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None and isinstance(one, click.Option):
                headings.setdefault(getattr(one, "heading", ""), []).append(record)
        for heading, records in sorted(headings.items(), key=lambda item: item[0].startswith("catalog")):
            with formatter.section(heading or "Options"):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)


class Group(click.Group):
    """click's, with our sentence for a command that there is not."""

    def __init__(self, name: str, *, examples: Sequence[str] = (), **options: Any) -> None:
        self.examples = examples
        super().__init__(name, context_settings=SETTINGS, options_metavar="[-h]", **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args or ["--help"])
        except click.NoSuchOption as error:
            ctx.fail(
                f"one of {', '.join(self.list_commands(ctx))} required, found the option {error.option_name}; options "
                "stand after the command"
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        there = self.list_commands(ctx)
        if args[0] not in there:
            ctx.fail(f"one of {', '.join(there)} required, found {args[0]}{closest(args[0], there)}")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Commands as one would type them, `# remarks` above some; what is too long goes on behind a backslash."""
    if examples:
        formatter.write_paragraph()
        formatter.write_heading("example" + ("s" if len(examples) > 1 else ""))
        for one in examples:
            lines = [f"  {one}"] if one.startswith("#") else command_lines(one, formatter.width)
            formatter.write("".join(f"{line}\n" for line in lines))


def closest(found: str, there: Sequence[str]) -> str:
    close = difflib.get_close_matches(found, there, n=1)
    return f"; did you mean {close[0]}?" if close else ""


CATALOG = "catalog (default: reqdedup.toml, REQDEDUP_* variables or the embedded one; docs/library.md)"


SHARED = ("json", "quiet", "debug", "catalog_uri", "warehouse", "catalog")
"""Names of the options that every subcommand that reports on a lake has."""


def subcommand(
    name: str | None = None, *, help: str, description: str, examples: Sequence[str] = (), reports: bool = True
) -> Callable[[Callable[[Options], int]], Subcommand]:
    """Make a function of its options a subcommand, with -q, --debug and, if it reports on a lake, --json and those
    that name the lake."""

    def made(run: Callable[[Options], int]) -> Subcommand:
        def callback(**options: Any) -> int:
            context = click.get_current_context()
            context.find_root().obj = context.command_path  # for the message of an error
            return run(Options(**options, command=context.command_path))

        # Where click's own decorators keep the options of a function that is no command yet.
        setattr(callback, "__click_params__", [*_shared_options(reports), *getattr(run, "__click_params__", [])])  # noqa: B010
        given = name or run.__name__.replace("_", "-")
        return click.command(given, cls=Subcommand, help=description, short_help=help, examples=examples)(callback)

    return made


def _shared_options(reports: bool) -> list[click.Parameter]:
    """Last first, as decorators leave them."""
    lake = [
        Option(["--catalog-uri"], metavar="URI", heading=CATALOG, help="for example sqlite:///path/catalog.db"),
        Option(["--warehouse"], metavar="DIR", heading=CATALOG, help="folder or s3:// location of tables' files"),
        Option(["--catalog"], metavar="NAME", heading=CATALOG, help="a catalog of your pyiceberg configuration"),
    ]
    said = [
        Option(["-q", "--quiet"], is_flag=True, help="no progress and no notes; results, warnings and errors stay"),
        Option(["--debug"], is_flag=True, help="show the traceback of an error"),
    ]
    json = Option(["--json"], is_flag=True, help="print one JSON document instead of text")
    return [*reversed(said), *([*reversed(lake), json] if reports else [])]


def option(*names: str, **settings: Any) -> Decorator:
    """click.option, of the kind that knows `heading` and `variadic`."""
    return click.option(*names, cls=Option, **settings)


def table_option(help: str = "a table") -> Decorator:
    return option("--table", required=True, metavar="NAMESPACE.NAME", help=help)


def tables_option() -> Decorator:
    return option("--table", multiple=True, required=True, metavar="NAMESPACE.NAME", help="a table; repeat it for more")


def apply_option() -> Decorator:
    return option("--apply", is_flag=True, help="do it; without this nothing changes and what would go is said")


def layout_option(help: str = "physical form (default: by_request)", default: str | None = "by_request") -> Decorator:
    choices = f"{help}; one of {', '.join(LAYOUTS)}"
    return option("--layout", type=OneOf(LAYOUTS), default=default, metavar="LAYOUT", help=choices)


def engine_option() -> Decorator:
    said = (
        "where buckets are worked on: inline, processes, processes:N, ray or ray:HOST:PORT (default: REQDEDUP_ENGINE)"
    )
    return option("--engine", type=Checked(values.engine), metavar="ENGINE", help=said)


def spill_option() -> Decorator:
    return option("--spill-dir", metavar="DIR", help="for temporary files (default: the system's)")
