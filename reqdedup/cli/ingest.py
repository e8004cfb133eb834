"""`reqdedup ingest`: a log into an Iceberg table, and what could not be read beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reqdedup.cli.arguments import LAYOUTS, Commands, add_command, buckets, number, positive
from reqdedup.cli.catalog import lake_of
from reqdedup.cli.output import ProgressLine, print_json

if TYPE_CHECKING:
    import argparse

PRESETS = ("kuairand", "mind", "movielens")


def add_commands(commands: Commands) -> None:
    command = add_command(
        commands,
        "ingest",
        run_ingest,
        help="read your own log into an Iceberg table",
        description="Read a log (Parquet, CSV/TSV, JSON Lines) into an Iceberg table, sorted and deduplicated by "
        "request. Rejected rows go to the table rejected_engagements of the same namespace, with reason, file and line.",
        examples=["reqdedup ingest ratings.csv --preset movielens --table movies.engagements_by_request"],
    )
    command.add_argument("log", type=Path, help="file or folder of the log")
    how = command.add_mutually_exclusive_group(required=True)
    how.add_argument("--preset", choices=PRESETS, help="a known log format")
    how.add_argument("--mapping", type=Path, metavar="FILE", help="TOML file that names the log's columns")
    command.add_argument("--table", required=True, metavar="NAMESPACE.NAME", help="table to replace")
    command.add_argument("--layout", choices=LAYOUTS, default="by_request", help="physical form (default: by_request)")
    command.add_argument("--buckets", type=buckets, default=16, metavar="N", help="partitions by user (default: 16)")
    command.add_argument(
        "--session-gap", type=number, metavar="SECONDS", help="for logs without request ids: a longer gap starts one"
    )
    command.add_argument("--max-history", type=positive, metavar="EVENTS", help="cut longer user histories")
    command.add_argument("--replace", action="store_true", help="drop a table of this name that has another form")
    command.add_argument("--strict", action="store_true", help="write nothing and fail if a row is rejected")


def run_ingest(arguments: argparse.Namespace) -> int:
    """Read, write, commit, then say what was taken and what was not."""
    from reqdedup.logs import read_log
    from reqdedup.logs.checks import REASONS
    from reqdedup.storage.write.rejects import rejects_identifier

    rejects_identifier(arguments.table)
    with ProgressLine() as progress:
        log = read_log(
            arguments.log,
            preset=arguments.preset,
            mapping=arguments.mapping,
            session_gap_s=arguments.session_gap,
            strict=arguments.strict,
            progress=lambda counts: progress(f"parse: {counts.rows_read:,} rows") if not counts.rows else None,
            **({"max_history": arguments.max_history} if arguments.max_history else {}),
        )
        report = lake_of(arguments, make=True).ingest(
            log,
            arguments.table,
            layout=arguments.layout,
            num_buckets=arguments.buckets,
            replace=arguments.replace,
            progress=progress,
        )
    if arguments.json:
        print_json(report)
        return 0
    print(report)
    print(f"{report.rejects_table}: {sum(report.rejected.values()):,} rejected rows")
    for reason, count in report.rejected.items():
        print(f"  {count:,} {reason}: {REASONS[reason]}")
    return 0
