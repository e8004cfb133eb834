"""The command `reqdedup`: a log into tables, and what the tables save.

    reqdedup ingest ratings.csv --preset movielens --table movies.engagements_by_request
    reqdedup report --table movies.engagements_by_request --json
    reqdedup audit data/impressions --request-key request_id --user-key user_id

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 an unexpected error,
2 something the caller can put right (the message says what), 130 interrupted. Everything heavy is imported inside the
functions, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from reqdedup.schema import EngagementSchema
    from reqdedup.storage import Layout

DEFAULT_DATA_DIR = Path("warehouse/data")
LAYOUTS = ("arrival", "by_request", "shuffled", "sorted", "sorted_large_pages")
PRESETS = ("kuairand", "mind", "movielens")


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
        print(f"reqdedup {arguments.command}: {str(error).strip() or type(error).__name__}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; a subcommand is a function of the parsed arguments in `run`."""
    from reqdedup import __version__

    parser = argparse.ArgumentParser(
        prog="reqdedup",
        description="Request-level data stored, moved and computed once per request.",
    )
    parser.add_argument("--version", action="version", version=f"reqdedup {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    ingest = commands.add_parser(
        "ingest",
        help="read your own log into an Iceberg table",
        description="Read a log (Parquet, CSV/TSV, JSON Lines) into an Iceberg table, sorted and deduplicated by "
        "request. Rejected rows go to the table rejected_engagements of the same namespace, with reason, file and line.",
    )
    ingest.add_argument("log", type=Path, help="file or folder of the log")
    how = ingest.add_mutually_exclusive_group(required=True)
    how.add_argument("--preset", choices=PRESETS, help="a known log format")
    how.add_argument("--mapping", type=Path, metavar="FILE", help="TOML file that names the log's columns")
    ingest.add_argument("--table", required=True, metavar="NAMESPACE.NAME", help="table to replace")
    ingest.add_argument("--layout", choices=LAYOUTS, default="by_request", help="physical form (default: by_request)")
    ingest.add_argument("--buckets", type=_positive, default=16, metavar="N", help="partitions by user (default: 16)")
    ingest.add_argument(
        "--session-gap", type=float, metavar="SECONDS", help="for logs without request ids: a longer gap starts one"
    )
    ingest.add_argument("--max-history", type=_positive, metavar="EVENTS", help="cut longer user histories")
    ingest.add_argument("--replace", action="store_true", help="drop a table of this name that has another form")
    ingest.add_argument("--strict", action="store_true", help="write nothing and fail if a row is rejected")
    ingest.set_defaults(run=run_ingest)

    report = commands.add_parser(
        "report",
        help="bytes of tables per column, against the control and the limit",
        description="Compare the physical forms of the same log, per column: bytes, ratio to the shuffled control, "
        "and the part of the store-once limit that is reached. Read from the footers of each snapshot's own files.",
    )
    report.add_argument(
        "--table", action="append", required=True, metavar="NAMESPACE.NAME", help="a table; repeat it for more"
    )
    report.set_defaults(run=run_report)

    audit = commands.add_parser(
        "audit",
        help="what a table that you already have would save, and what to set",
        description="How often each column of a table repeats within a request, what that costs today and in each layout "
        "(estimated from a sample of whole users, with the error), the likely causes, and the properties to set. Any Iceberg "
        "table, or Parquet files; changes nothing. See docs/audit.md.",
    )
    audit.add_argument("files", nargs="*", metavar="PATH", help="folder of Parquet files, or files; or else --table")
    audit.add_argument("--table", metavar="NAMESPACE.NAME", help="an Iceberg table of the catalog")
    audit.add_argument(
        "--request-key", nargs="+", required=True, metavar="COLUMN", help="what the rows of one request have in common"
    )
    audit.add_argument("--user-key", nargs="+", default=(), metavar="COLUMN", help="whose request it is")
    audit.add_argument("--item-key", nargs="+", default=(), metavar="COLUMN", help="what orders the rows of a request")
    audit.add_argument(
        "--sample",
        type=_positive,
        default=2048,
        metavar="MB",
        help="size of the sample with every value laid down (2048)",
    )
    audit.add_argument(
        "--read-at-most", type=_positive, default=256, metavar="GB", help="compressed bytes read for the sample (256)"
    )
    audit.add_argument(
        "--buckets", type=_positive, default=16, metavar="N", help="of the estimated layouts (default: 16)"
    )
    audit.set_defaults(run=run_audit)

    for command in (ingest, report, audit):
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
        catalog = command.add_argument_group("catalog", "Default: SQLite and local files under warehouse/data.")
        catalog.add_argument("--catalog-uri", metavar="URI", help="for example sqlite:///path/catalog.db")
        catalog.add_argument("--warehouse", metavar="DIR", help="folder or s3:// location of the tables' files")
        catalog.add_argument("--catalog", metavar="NAME", help="a catalog of your pyiceberg configuration instead")
    return parser


def run_ingest(arguments: argparse.Namespace) -> int:
    """Read, write, commit, then say what was taken and what was not."""
    from reqdedup.logs import read_log
    from reqdedup.logs.checks import REASONS
    from reqdedup.storage import Layout, create_table, write, write_rejects
    from reqdedup.storage.rejects import rejects_identifier

    rejects_name = rejects_identifier(arguments.table)
    progress = _ProgressLine()
    log = read_log(
        arguments.log,
        preset=arguments.preset,
        mapping=arguments.mapping,
        session_gap_s=arguments.session_gap,
        strict=arguments.strict,
        progress=lambda counts: progress(f"parse: {counts.rows_read:,} rows") if not counts.rows else None,
        **({"max_history": arguments.max_history} if arguments.max_history else {}),
    )
    catalog, layout = open_catalog(arguments), Layout(arguments.layout)
    is_new = not catalog.table_exists(arguments.table)
    if not is_new and not arguments.replace:
        _check_same_form(catalog.load_table(arguments.table), log.schema, layout, arguments.buckets)
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
        print(json.dumps(summary, indent=2))
        return 0
    print(
        f"{arguments.table} ({layout.value}): {written.rows:,} rows, {written.requests:,} requests, "
        f"{written.users:,} users, {format_bytes(written.bytes)}"
    )
    print(f"{rejects_name}: {sum(rejected.values()):,} rejected rows")
    for reason, count in rejected.items():
        print(f"  {count:,} {reason}: {REASONS[reason]}")
    return 0


def _check_same_form(table: Table, schema: EngagementSchema, layout: Layout, num_buckets: int) -> None:
    """Raise ValueError where a new ingest would have to drop the table, as `create_table` does."""
    from reqdedup.storage import table_layout, table_schema
    from reqdedup.storage.layout import LAYOUT_PROPERTY, table_buckets

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


def run_report(arguments: argparse.Namespace) -> int:
    """Print the compression report of the named tables."""
    from reqdedup.storage import compression_report

    catalog = open_catalog(arguments)
    report = compression_report({name: _load_table(catalog, name) for name in arguments.table})
    print(json.dumps(report.to_pylist(), indent=2, default=str) if arguments.json else format_report(report))
    return 0


def run_audit(arguments: argparse.Namespace) -> int:
    """Print the audit of a table or of Parquet files."""
    from reqdedup.storage.audit import audit_table, render

    if bool(arguments.table) == bool(arguments.files):
        raise ValueError("either PATH or --table required; name Parquet files, or one Iceberg table")
    files = arguments.files[0] if len(arguments.files) == 1 else arguments.files
    progress = _ProgressLine()
    try:
        report = audit_table(
            _load_table(open_catalog(arguments), arguments.table) if arguments.table else files,
            request_key=arguments.request_key,
            user_key=arguments.user_key,
            item_key=arguments.item_key,
            sample_bytes=arguments.sample * 2**20,
            read_bytes=arguments.read_at_most * 10**9,
            num_buckets=arguments.buckets,
            progress=progress,
        )
    finally:
        progress.close()
    print(report.to_json() if arguments.json else render(report))
    return 0


def open_catalog(arguments: argparse.Namespace) -> Catalog:
    """The catalog of --catalog, or of --catalog-uri and --warehouse; by default the embedded one."""
    from reqdedup.storage import catalogs

    if arguments.catalog:
        if arguments.catalog_uri or arguments.warehouse:
            raise ValueError("--catalog names a configured catalog: leave --catalog-uri and --warehouse out beside it")
        return catalogs.open_catalog(arguments.catalog)
    uri = arguments.catalog_uri or f"sqlite:///{DEFAULT_DATA_DIR.absolute() / 'catalog.db'}"
    warehouse = arguments.warehouse
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).absolute()
        if arguments.command == "ingest":
            database.parent.mkdir(parents=True, exist_ok=True)
        elif not database.exists():
            raise ValueError(
                f"a catalog required, found none at {database}; name one with --catalog-uri, or make one with "
                "`reqdedup ingest` or `make run`"
            )
        warehouse = warehouse or str(database.parent / "tables")
    if not warehouse:
        raise ValueError(
            "--catalog-uri of a server needs --warehouse, the folder or s3:// location of the tables' files"
        )
    if "://" not in warehouse:
        warehouse = f"file://{Path(warehouse).absolute()}"
    return catalogs.open_catalog(properties={"uri": uri, "warehouse": warehouse})


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


def format_bytes(count: float | None) -> str:
    """1536 -> '1.5 kB' (decimal units); '-' where there is no figure."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _format(value: float | None, spec: str, suffix: str = "") -> str:
    return "-" if value is None else f"{value:{spec}}{suffix}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a positive number required, found {text}")
    return value


def _load_table(catalog: Catalog, name: str) -> Table:
    from pyiceberg.exceptions import NoSuchTableError

    try:
        return catalog.load_table(name)
    except NoSuchTableError as error:
        raise ValueError(f"table {name} is not in the catalog; {_tables_there(catalog)}") from error


def _tables_there(catalog: Catalog) -> str:
    names = [".".join(name) for namespace in catalog.list_namespaces() for name in catalog.list_tables(namespace)]
    return f"there are: {', '.join(sorted(names)[:20])}" if names else "there are none: run `reqdedup ingest` first"


def _is_for_the_caller(error: Exception) -> bool:
    """True for errors about input, tables or the catalog; anything else is a defect and keeps its traceback."""
    if isinstance(error, (ValueError, OSError)) or type(error) is RuntimeError:  # a commit that conflicts
        return True
    return type(error).__module__.partition(".")[0] in ("pyiceberg", "sqlalchemy", "botocore", "requests")


class _ProgressLine:
    """One line on standard error: rewritten on a terminal, printed every few seconds otherwise."""

    def __init__(self) -> None:
        self.printed = time.monotonic()
        self.is_terminal = sys.stderr.isatty()
        self.width = 0

    def __call__(self, progress: object) -> None:
        now = time.monotonic()
        if now - self.printed < (0.2 if self.is_terminal else 5.0):
            return
        self.printed = now
        text = str(progress)
        if self.is_terminal:
            print(f"\r{text:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.width:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
