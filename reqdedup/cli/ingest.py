"""`reqdedup ingest`: a log into an Iceberg table, and what could not be read beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reqdedup.cli.arguments import LAYOUTS, Commands, add_command, buckets, number, positive
from reqdedup.cli.catalog import open_catalog
from reqdedup.cli.output import ProgressLine, format_bytes, print_json

if TYPE_CHECKING:
    import argparse

    from pyiceberg.table import Table

    from reqdedup.schema import EngagementSchema
    from reqdedup.storage import Layout

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
    from reqdedup.storage import Layout, create_table, write, write_rejects
    from reqdedup.storage.write.rejects import rejects_identifier

    rejects_name = rejects_identifier(arguments.table)
    progress = ProgressLine()
    log = read_log(
        arguments.log,
        preset=arguments.preset,
        mapping=arguments.mapping,
        session_gap_s=arguments.session_gap,
        strict=arguments.strict,
        progress=lambda counts: progress(f"parse: {counts.rows_read:,} rows") if not counts.rows else None,
        **({"max_history": arguments.max_history} if arguments.max_history else {}),
    )
    catalog, layout = open_catalog(arguments, make=True), Layout(arguments.layout)
    is_new = not catalog.table_exists(arguments.table)
    if not is_new and not arguments.replace:
        check_same_form(catalog.load_table(arguments.table), log.schema, layout, arguments.buckets)
    table = create_table(catalog, arguments.table, log.schema, layout, num_buckets=arguments.buckets)
    try:
        written = write(table, log, layout, mode="replace", progress=progress)
    except BaseException:
        if is_new:
            catalog.purge_table(arguments.table)
        raise
    finally:
        progress.close()
    write_rejects(catalog, rejects_name, log.rejects)
    rejected = dict(sorted(log.counts.rejected.items(), key=lambda item: -item[1]))
    summary = {
        "table": arguments.table,
        "layout": layout.value,
        "rows": written.rows,
        "requests": written.requests,
        "users": written.users,
        "bytes": written.bytes,
        "rejected": rejected,
        "rejects_table": rejects_name,
    }
    if arguments.json:
        print_json(summary)
        return 0
    print(
        f"{arguments.table} ({layout.value}): {written.rows:,} rows, {written.requests:,} requests, "
        f"{written.users:,} users, {format_bytes(written.bytes)}"
    )
    print(f"{rejects_name}: {sum(rejected.values()):,} rejected rows")
    for reason, count in rejected.items():
        print(f"  {count:,} {reason}: {REASONS[reason]}")
    return 0


def check_same_form(table: Table, schema: EngagementSchema, layout: Layout, num_buckets: int) -> None:
    """Raise ValueError where a new ingest would have to drop the table, as `create_table` does."""
    from reqdedup.storage import table_layout, table_schema
    from reqdedup.storage.iceberg.layout import LAYOUT_PROPERTY, table_buckets

    if LAYOUT_PROPERTY not in table.properties:
        return  # not ours: create_table refuses it
    differs = []
    if table_schema(table) != schema:
        differs.append("columns")
    if table_layout(table) is not layout:
        differs.append(f"layout {table_layout(table).value}")
    if layout.is_bucketed and table_buckets(table) not in (None, num_buckets):
        differs.append(f"{table_buckets(table)} buckets")
    if differs:
        raise ValueError(
            f"table {'.'.join(table.name())} is there in another form ({', '.join(differs)}); choose another --table, or "
            "pass --replace to drop it and its rows first"
        )
