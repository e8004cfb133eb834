"""The whole command line, and what becomes of an error.

A traceback is shown only with --debug. Every module of `reqdedup.cli.commands` says which subcommands it has, in
COMMANDS: a new one is a new module.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import click
from click.shell_completion import shell_complete

from reqdedup import __version__
from reqdedup.cli import commands
from reqdedup.cli.extras import extra_of
from reqdedup.cli.options import Group
from reqdedup.cli.output import tell, warn
from reqdedup.environment import variables
from reqdedup.masking import mask

EXAMPLES = (
    "# what a table of yours would save",
    "reqdedup audit data/impressions --request-key request_id --user-key user_id",
    "# the table, or a log, made into one of ours",
    "reqdedup convert data/impressions --table lake.t --user user_id --request request_id --item item_id --time ts",
    "reqdedup ingest ratings.csv --preset movielens --table movies.engagements",
    "# what lies in the lake, and what it needs",
    "reqdedup tables",
    "reqdedup health --table movies.engagements",
    "reqdedup compact --table movies.engagements",
    "# what deletes for good looks only, until it gets --apply",
    "reqdedup expire --table movies.engagements --older-than 7d",
    "reqdedup delete-user 4711 --namespace movies --apply --erase",
    "# a model, and what works here",
    "reqdedup train movies.engagements --task ranking --out runs/ranking",
    "reqdedup doctor",
)
EXIT_CODES = (
    ("0", "done; also help, and what was looked at without --apply"),
    ("1", "a check failed (doctor, health --requests), or a defect: --debug shows its traceback"),
    ("2", "something that you can put right; the message says what was required, what was found, and what to do"),
    ("130", "interrupted; the message says what was kept and what was not"),
)
AS_BEFORE = "tables are as before their last commit"
COMPLETION_VARIABLE = "_REQDEDUP_COMPLETE"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code. Raises SystemExit(2) for words that are no command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    program = build_program()
    if instruction := variables().get(COMPLETION_VARIABLE):
        return shell_complete(program, {}, "reqdedup", COMPLETION_VARIABLE, instruction)
    context: click.Context | None = None
    try:
        context = program.make_context("reqdedup", words)
        with context, _plain_warnings():
            return int(program.invoke(context) or 0)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.UsageError as error:
        print(f"{_usage(error)}\n", end="", file=sys.stderr)
        tell(f"{_path(error)}: error:", _sentence(error), colour="red")
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        _say_traceback(words)
        tell(f"{_command(context)}: interrupted;", _text(error) or AS_BEFORE, colour="yellow")
        return 130
    except BrokenPipeError:  # `reqdedup report | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        _say_traceback(words)
        if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
            tell(
                f"{_command(context)}:",
                f"{error.name} required, found none; pip install 'reqdedup[{extra}]'",
                colour="red",
            )
            return 2
        if _is_for_the_caller(error):
            tell(f"{_command(context)}:", _text(error) or type(error).__name__, colour="red")
            return 2
        defect = f"a defect, {type(error).__name__}: {_text(error)}; "
        tell(f"{_command(context)}:", f"{defect}--debug shows its traceback, please report it with that", colour="red")
        return 1


def build_program() -> click.Group:
    """The whole command line: the subcommands of every module of `reqdedup.cli.commands`."""
    program = Program(
        "reqdedup", help="Request-level data stored, moved and computed once per request.", examples=EXAMPLES
    )
    click.version_option(__version__, prog_name="reqdedup", message="%(prog)s %(version)s")(program)
    for module in pkgutil.iter_modules(commands.__path__):
        for command in importlib.import_module(f"{commands.__name__}.{module.name}").COMMANDS:
            program.add_command(command)
    return program


class Program(Group):
    """The group of all subcommands, whose help ends with the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("exit codes"):
            formatter.write_dl(EXIT_CODES)


def _command(context: click.Context | None) -> str:
    return (context.obj if context is not None else None) or "reqdedup"


def _text(error: BaseException) -> str:
    """The message with its notes, without credentials."""
    return mask("\n".join([str(error).strip(), *getattr(error, "__notes__", ())]).strip())


def _say_traceback(words: Sequence[str]) -> None:
    if "--debug" in words:
        print(mask(traceback.format_exc()), end="", file=sys.stderr)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of libraries as one line each, without the line of code that they came from."""
    shown = warnings.showwarning

    def show(message: Warning | str, *arguments: Any, **options: Any) -> None:
        warn(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _usage(error: click.UsageError) -> str:
    context = error.ctx
    usage = context.get_usage() if context is not None else "Usage: reqdedup [-h] COMMAND"
    return "usage:" + usage.removeprefix("Usage:")


def _path(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx is not None else "reqdedup"


def _sentence(error: click.UsageError) -> str:
    if not isinstance(error, click.BadParameter) or error.param is None or error.ctx is None:
        return error.message
    is_option = error.param.param_type_name == "option"
    name = max(error.param.opts, key=len) if is_option else error.param.make_metavar(error.ctx).strip("[].")
    if isinstance(error, click.MissingParameter):
        return f"{name} required, found none"
    return f"argument {name}: {error.message}"


def _is_for_the_caller(error: Exception) -> bool:
    """True for errors about input, tables or the catalog; anything else is a defect and keeps its traceback."""
    if isinstance(error, (ValueError, OSError)):
        return True
    ours = ("ConflictError", "IntegrityError", "StoreUnavailableError")  # not imported only to be asked for
    if any(kind.__name__ in ours for kind in type(error).__mro__):
        return True
    return type(error).__module__.partition(".")[0] in ("pyiceberg", "sqlalchemy", "botocore", "requests")
