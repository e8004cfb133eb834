"""`reqdedup report` and `reqdedup audit`: what tables take, and what a team's own table would save."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reqdedup.cli.catalog import load_table, load_tables, open_catalog
from reqdedup.cli.options import BUCKETS, Checked, Options, option, subcommand, tables_option
from reqdedup.cli.output import ProgressLine, format_bytes, format_table, print_json, say
from reqdedup.cli.terminal import width
from reqdedup.cli.values import whole
from reqdedup.masking import mask

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
    examples=[
        "reqdedup audit data/impressions --request-key request_id --user-key user_id",
        "reqdedup audit data/impressions --request-key request_id --user-key user_id --html audit.html",
    ],
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
@option("--buckets", type=BUCKETS, metavar="N", help="of the estimated layouts (default: as convert makes)")
@option("--html", metavar="FILE", help="also write a page with charts, one file that needs no network")
def audit(arguments: Options) -> int:
    """Print the audit of a table or of Parquet files."""
    from reqdedup.audit import audit_table, render
    from reqdedup.audit.render import WIDTH

    if bool(arguments.table) == bool(arguments.files):
        raise ValueError("either PATH or --table required; name Parquet files, or one Iceberg table")
    if arguments.html:
        _check_page(Path(arguments.html))
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
    if arguments.html:
        from reqdedup.audit.page import page

        Path(arguments.html).write_text(mask(page(found)), encoding="utf-8")
    if arguments.json:
        print(mask(found.to_json()))
    else:
        print(mask(render(found, width=width(sys.stdout) or WIDTH)))  # whose settings are to be copied as they are
    return 0


def _check_page(path: Path) -> None:
    """Before the audit, which may take minutes."""
    if path.suffix not in (".html", ".htm"):
        raise ValueError(f"--html: a file that ends with .html required, found {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--html: a file in an existing folder required, found no folder {path.parent}; make it first")
    if find_spec("matplotlib") is None:
        raise ValueError("--html: matplotlib for the charts required, found none; pip install 'reqdedup[plots]'")


COMMANDS = (report, audit)


def format_report(report: pa.Table) -> str:
    """The compression report as text: one block per table, its columns by size, then all of them together."""
    from reqdedup.storage.measure.compression import layout_totals

    blocks, totals = [], {row["table"]: row for row in layout_totals(report)}
    head = ("column", "level", "stored", "plain", "to control", "limit", "of limit")
    for name in dict.fromkeys(report.column("table").to_pylist()):
        rows = [row for row in report.to_pylist() if row["table"] == name]
        title = (
            f"{name}: {rows[0]['rows']:,} rows, {rows[0]['requests']:,} requests, "
            f"{rows[0]['fan_out']:.1f} rows per request"
        )
        rows.sort(key=lambda row: -row["compressed_bytes"])
        total = totals[name]
        all_columns = {
            "column": "all columns",
            "level": "",
            "compressed_bytes": total["bytes"],
            "uncompressed_bytes": sum(row["uncompressed_bytes"] for row in rows),
            "ratio_to_control": total["ratio"],
            **{key: total[key] for key in ("store_once_bytes", "fraction_of_limit")},
        }
        cells = [
            (
                row["column"],
                row["level"],
                format_bytes(row["compressed_bytes"]),
                format_bytes(row["uncompressed_bytes"]),
                _format(row["ratio_to_control"], ".1f", "x"),
                format_bytes(row["store_once_bytes"]),
                _format(row["fraction_of_limit"], ".0%"),
            )
            for row in [*rows, all_columns]
        ]
        blocks.append(f"{title}\n{format_table(head, cells)}")
    return "\n\n".join(blocks)


def _format(value: float | None, spec: str, suffix: str = "") -> str:
    return "-" if value is None else f"{value:{spec}}{suffix}"
