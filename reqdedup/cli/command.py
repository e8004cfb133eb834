"""The whole command line, and what becomes of an error."""

from __future__ import annotations

import argparse
import sys

from reqdedup.cli import conversion, deletion, features, health, ingest, maintenance, reports, sampling, tables
from reqdedup.cli.arguments import CommandParser, ExamplesFormatter
from reqdedup.masking import mask

EXAMPLES = """examples:
  reqdedup audit data/impressions --request-key request_id --user-key user_id     what a table of yours would save
  reqdedup convert data/impressions --table lake.t --user user_id --request request_id --item item_id --time ts
  reqdedup ingest ratings.csv --preset movielens --table movies.engagements       or a log
  reqdedup tables                                                                 what lies in the lake
  reqdedup health --table movies.engagements                                      what it needs
  reqdedup compact --table movies.engagements
  reqdedup expire --table movies.engagements --older-than 7d                      looks; --apply does it
  reqdedup delete-user 4711 --namespace movies --apply --erase
  reqdedup COMMAND --help                                                         options and examples of each"""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("reqdedup: interrupted; tables are as before the last commit", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `reqdedup report | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if not _is_for_the_caller(error):
            raise
        command = " ".join([arguments.command, *filter(None, [getattr(arguments, "action", None)])])
        print(f"reqdedup {command}: {mask(str(error).strip()) or type(error).__name__}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; a subcommand is a function of the parsed arguments in `run`."""
    from reqdedup import __version__

    parser = CommandParser(
        prog="reqdedup",
        description="Request-level data stored, moved and computed once per request.",
        epilog=EXAMPLES,
        formatter_class=ExamplesFormatter,
    )
    parser.add_argument("--version", action="version", version=f"reqdedup {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (ingest, tables, reports, conversion, health, maintenance, deletion, sampling, features):
        group.add_commands(commands)
    return parser


def _is_for_the_caller(error: Exception) -> bool:
    """True for errors about input, tables or the catalog; anything else is a defect and keeps its traceback."""
    if isinstance(error, (ValueError, OSError)) or type(error) is RuntimeError:
        return True
    if any(kind.__name__ == "ConflictError" for kind in type(error).__mro__):  # not imported only to be asked for
        return True
    return type(error).__module__.partition(".")[0] in ("pyiceberg", "sqlalchemy", "botocore", "requests")
