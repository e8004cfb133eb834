"""`reqdedup tables`: what lies in the lake."""

from __future__ import annotations

import sys

from reqdedup.cli.catalog import lake_of
from reqdedup.cli.options import Options, option, subcommand
from reqdedup.cli.output import print_json, say
from reqdedup.cli.terminal import width


@subcommand(
    help="tables of the lake: layout, rows, bytes, snapshot",
    description="Every table of the catalog, or of one namespace, from its metadata. It changes nothing.",
    examples=["reqdedup tables", "reqdedup tables --namespace laptop --json"],
)
@option("--namespace", metavar="NAME", help="only this one")
def tables(arguments: Options) -> int:
    """Print the tables."""
    found = lake_of(arguments).tables(arguments.namespace)
    if arguments.json:
        print_json(found.to_arrow())
    else:
        say(found.text(width(sys.stdout)))
    return 0


COMMANDS = (tables,)
