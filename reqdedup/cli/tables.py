"""`reqdedup tables`: what lies in the lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reqdedup.cli.arguments import Commands, add_command
from reqdedup.cli.catalog import lake_of
from reqdedup.cli.output import print_json

if TYPE_CHECKING:
    import argparse


def add_commands(commands: Commands) -> None:
    command = add_command(
        commands,
        "tables",
        run_tables,
        help="tables of the lake: layout, rows, bytes, snapshot",
        description="Every table of the catalog, or of one namespace, from its metadata. It changes nothing.",
        examples=["reqdedup tables", "reqdedup tables --namespace laptop --json"],
    )
    command.add_argument("--namespace", metavar="NAME", help="only this one")


def run_tables(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    tables = lake_of(arguments).tables(arguments.namespace)
    if arguments.json:
        print_json(tables.to_arrow())
    else:
        print(tables)
    return 0
