"""`reqdedup report` and `reqdedup audit`: what tables take, and what a team's own table would save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from reqdedup.cli.catalog import load_table, load_tables, open_catalog
from reqdedup.cli.options import BUCKETS, Checked, Options, option, subcommand, tables_option
from reqdedup.cli.output import ProgressLine, format_bytes, print_json, say
from reqdedup.cli.values import whole

if TYPE_CHECKING:
    import pyarrow as pa


@subcommand(
    help="bytes of tables per column, against the control and the limit",
    description="Compare the physical forms of the same log, per column: bytes, ratio to the shuffled control, and the "
    "part of the store-once limit that is reached. Read from the footers of each snapshot's own files.",
    examples=["reqdedup report --table movies.engagements_shuffled --table movies.engagements_by_request"],
)
@tables_option()
def report(arguments: Options) -> int:
    """Print the compression report of the named tables."""
    from reqdedup.storage import compression_report

    catalog = open_catalog(arguments)
    found = compression_report(dict(zip(dict.fromkeys(arguments.table), load_tables(catalog, arguments.table))))
    if arguments.json:
        print_json(found)
    else:
        say(format_report(found))
    return 0


@subcommand(
    help="what a table that you already have would save, and what to set",
    description="How often each column of a table repeats within a request, what that costs today and in each layout "
    "(estimated from a sample of whole users, with the error), the likely causes, and the properties to set. Any "
    "Iceberg table, or Parquet files; changes nothing. See docs/audit.md.",
    examples=["reqdedup audit data/impressions --request-key request_id --user-key user_id"],
)
@click.argument("files", nargs=-1, metavar="[PATH]...")
@option("--table", metavar="NAMESPACE.NAME", help="an Iceberg table of the catalog, in place of PATH")
@option("--request-key", variadic=True, required=True, metavar="COLUMN...", help="what rows of one request share")
@option("--user-key", variadic=True, metavar="COLUMN...", help="whose request it is")
@option("--item-key", variadic=True, metavar="COLUMN...", help="what orders the rows of a request")
@option(
    "--sample",
    type=Checked(whole, most=2**20),
    default=2048,
    metavar="MB",
    help="size of the sample with every value laid down (2048)",
)
@option(
    "--read-at-most",
    type=Checked(whole, most=10**6),
    default=256,
    metavar="GB",
    help="compressed bytes read for the sample (256)",
)
@option("--buckets", type=BUCKETS, default=16, metavar="N", help="of the estimated layouts (default: 16)")
def audit(arguments: Options) -> int:
    """Print the audit of a table or of Parquet files."""
    from reqdedup.audit import audit_table, render

    if bool(arguments.table) == bool(arguments.files):
        raise ValueError("either PATH or --table required; name Parquet files, or one Iceberg table")
    files = arguments.files[0] if len(arguments.files) == 1 else arguments.files
    with ProgressLine() as progress:
        found = audit_table(
            load_table(open_catalog(arguments), arguments.table) if arguments.table else files,
            request_key=arguments.request_key,
            user_key=arguments.user_key,
            item_key=arguments.item_key,
            sample_bytes=arguments.sample * 2**20,
            read_bytes=arguments.read_at_most * 10**9,
            num_buckets=arguments.buckets,
            progress=progress,
        )
    say(found.to_json() if arguments.json else render(found))
    return 0


COMMANDS = (report, audit)


def format_report(report: pa.Table) -> str:
    """The compression report as text: one block per table, its columns by size, then all of them together."""
    lines = []
    for name in dict.fromkeys(report.column("table").to_pylist()):
        rows = [row for row in report.to_pylist() if row["table"] == name]
        lines += [
            f"{name}: {rows[0]['rows']:,} rows, {rows[0]['requests']:,} requests, "
            f"{rows[0]['fan_out']:.1f} rows per request",
            f"  {'column':<24} {'level':<8} {'stored':>9} {'plain':>9} {'to control':>10} {'limit':>9} {'of limit':>8}",
        ]
        rows.sort(key=lambda row: -row["compressed_bytes"])
        for row in [*rows, _total(rows)]:
            lines.append(
                f"  {row['column']:<24} {row['level']:<8} {format_bytes(row['compressed_bytes']):>9} "
                f"{format_bytes(row['uncompressed_bytes']):>9} {_format(row['ratio_to_control'], '.1f', 'x'):>10} "
                f"{format_bytes(row['store_once_bytes']):>9} {_format(row['fraction_of_limit'], '.0%'):>8}"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of all columns together."""
    stored, limit = (sum(row[name] for row in rows) for name in ("compressed_bytes", "store_once_bytes"))
    ratios = [row["ratio_to_control"] for row in rows]
    control = sum(row["compressed_bytes"] * row["ratio_to_control"] for row in rows) if None not in ratios else None
    return {
        "column": "all columns",
        "level": "",
        "compressed_bytes": stored,
        "uncompressed_bytes": sum(row["uncompressed_bytes"] for row in rows),
        "ratio_to_control": control / stored if control is not None and stored else None,
        "store_once_bytes": limit,
        "fraction_of_limit": limit / stored if stored else None,
    }


def _format(value: float | None, spec: str, suffix: str = "") -> str:
    return "-" if value is None else f"{value:{spec}}{suffix}"
