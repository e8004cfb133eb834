"""The whole command line, and what becomes of an error.

Every module of `reqdedup.cli.commands` says which subcommands it has, in COMMANDS: a new one is a new module.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from reqdedup import __version__
from reqdedup.cli import commands
from reqdedup.cli.options import Group
from reqdedup.environment import variables
from reqdedup.masking import mask

EXAMPLES = (
    "reqdedup audit data/impressions --request-key request_id --user-key user_id     what a table of yours would save",
    "reqdedup convert data/impressions --table lake.t --user user_id --request request_id --item item_id --time ts",
    "reqdedup ingest ratings.csv --preset movielens --table movies.engagements       or a log",
    "reqdedup tables                                                                 what lies in the lake",
    "reqdedup health --table movies.engagements                                      what it needs",
    "reqdedup compact --table movies.engagements",
    "reqdedup expire --table movies.engagements --older-than 7d                      looks; --apply does it",
    "reqdedup delete-user 4711 --namespace movies --apply --erase",
    "reqdedup COMMAND --help                                                         options and examples of each",
)
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
        with context:
            return int(program.invoke(context) or 0)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.UsageError as error:
        print(f"{_usage(error)}\n{_path(error)}: error: {mask(_sentence(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("reqdedup: interrupted; tables are as before the last commit", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `reqdedup report | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if not _is_for_the_caller(error):
            raise
        command = (context.obj if context is not None else None) or "reqdedup"
        print(f"{command}: {mask(str(error).strip()) or type(error).__name__}", file=sys.stderr)
        return 2


def build_program() -> click.Group:
    """The whole command line: the subcommands of every module of `reqdedup.cli.commands`."""
    program = Group(
        "reqdedup", help="Request-level data stored, moved and computed once per request.", examples=EXAMPLES
    )
    click.version_option(__version__, prog_name="reqdedup", message="%(prog)s %(version)s")(program)
    for module in pkgutil.iter_modules(commands.__path__):
        for command in importlib.import_module(f"{commands.__name__}.{module.name}").COMMANDS:
            program.add_command(command)
    return program


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
    if any(
        kind.__name__ in ("ConflictError", "IntegrityError") for kind in type(error).__mro__
    ):  # not imported only to be asked for
        return True
    return type(error).__module__.partition(".")[0] in ("pyiceberg", "sqlalchemy", "botocore", "requests")
