"""`reqdedup convert`: a table that a team already has, rewritten into a layout and verified row for row."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reqdedup.cli.catalog import (
    check_table_name,
    describe_catalog,
    kept_of_write,
    load_table,
    open_catalog,
    snapshot_of,
)
from reqdedup.cli.options import (
    AGE,
    BUCKETS,
    PAIR,
    OneOf,
    Options,
    engine_option,
    layout_option,
    option,
    spill_option,
    subcommand,
    table_option,
)
from reqdedup.cli.output import (
    ProgressLine,
    counted,
    format_bytes,
    format_table,
    interruptible,
    print_json,
    say,
    warn,
)
from reqdedup.cli.values import whole

if TYPE_CHECKING:
    from reqdedup.convert import ColumnMapping, ConvertReport
    from reqdedup.schema import Level

TIME_UNITS = ("s", "ms", "us", "ns")
column_option = partial(option, heading="columns (a file says the same, options here win)")


@subcommand(
    help="rewrite a table that you already have into a layout",
    description="Make a new table, or with --append add to one, from Parquet files or an Iceberg table, which are only "
    "read. Levels of columns are taken from a sample unless they are given; every row is checked, and nothing is "
    "visible before both sides have the same checksum. Columns inside structs are named with dots. See "
    "docs/convert.md.",
    examples=[
        "reqdedup convert data/impressions --table lake.engagements --user user_id --request request_id \\\n"
        "      --item item_id --time ts --time-unit ms --label clicked",
        "reqdedup convert --source-table ads.impressions --catalog prod --table ads.by_request --mapping ads.toml",
        "reqdedup convert data/2026-02-02 --table lake.engagements --mapping lake.toml --append",
        "reqdedup convert data/views --table lake.views --user member --session-gap 30m --item video --time at",
    ],
)
@click.argument("files", nargs=-1, metavar="[PATH]...")
@option("--source-table", metavar="NAMESPACE.NAME", help="an Iceberg table to read, in place of PATH")
@option("--source-catalog", metavar="NAME", help="its catalog of your pyiceberg configuration (default: --table's)")
@table_option("the new table")
@option("--append", is_flag=True, help="the table is there: add the rows to it, in one commit and in its own form")
@layout_option(default=None)
@option("--buckets", type=BUCKETS, metavar="N", help="partitions by user (default: what fits the size)")
@spill_option()
@engine_option()
@column_option(
    "--mapping", type=click.Path(path_type=Path), metavar="FILE", help="TOML with the keys of docs/convert.md"
)
@column_option("--user", metavar="COLUMN")
@column_option("--request", variadic=True, metavar="COLUMN...", help="one, or several that tell requests apart")
@column_option(
    "--session-gap", "session_gap_s", type=AGE, metavar="AGE", help="without --request: a longer pause starts one (30m)"
)
@column_option("--item", metavar="COLUMN", help="a list of them makes a row of each")
@column_option("--candidates", variadic=True, metavar="COLUMN...", help="lists beside such an item's that go with it")
@column_option("--time", metavar="COLUMN", help="of the request")
@column_option("--time-unit", type=OneOf(TIME_UNITS), help="of a time that is a whole number")
@column_option("--history-time-unit", type=OneOf(TIME_UNITS), help="of numbers that become history_ts (default: ms)")
@column_option("--label", "labels", variadic=True, metavar="COLUMN...", help="what is to be predicted")
@column_option(
    "--level",
    "levels",
    variadic=True,
    type=PAIR,
    metavar="COLUMN=LEVEL...",
    help="request or item, where it is known",
)
@column_option("--rename", variadic=True, type=PAIR, metavar="COLUMN=NAME...", help="its name in the new table")
@column_option("--ids", variadic=True, metavar="COLUMN...", help="further ids of text, numbered as those of items")
@column_option("--hash-items", is_flag=True, help="ids of text become their hash, not those of the table items")
@column_option("--exclude", variadic=True, metavar="COLUMN...", help="left out")
@column_option(
    "--vector", "vectors", variadic=True, type=PAIR, metavar="COLUMN=WIDTH...", help="lists that are vectors"
)
def convert(arguments: Options) -> int:
    """Convert, then say what came out."""
    from reqdedup.convert import convert_table, open_source
    from reqdedup.storage import Layout
    from reqdedup.storage.iceberg import catalogs

    if bool(arguments.source_table) == bool(arguments.files):
        raise ValueError("either PATH or --source-table required; name Parquet files, or one Iceberg table")
    if arguments.source_catalog and not arguments.source_table:
        raise ValueError("--source-catalog is the catalog of --source-table, which is missing")
    mapping = read_mapping(arguments)
    check_table_name(arguments.table)
    source: Any = arguments.files[0] if len(arguments.files) == 1 else arguments.files
    if arguments.source_table:
        named = arguments.source_catalog
        other = catalogs.open_catalog(named) if named else open_catalog(arguments)
        source = load_table(other, arguments.source_table)
    source = open_source(source, mapping)
    catalog = open_catalog(arguments, make=not arguments.append)  # after the source: a wrong one makes no catalog
    before = snapshot_of(catalog, arguments.table)
    with ProgressLine() as progress, interruptible(lambda: kept_of_write(catalog, arguments.table, before)):
        report = convert_table(
            source,
            catalog,
            arguments.table,
            mapping,
            layout=Layout(arguments.layout) if arguments.layout else None,
            num_buckets=arguments.buckets,
            append=arguments.append,
            progress=progress,
            spill_dir=arguments.spill_dir,
            engine=arguments.engine,
        )
    if report.repeated_rows:
        which = "all" if report.repeated_rows == report.rows else f"{report.repeated_rows:,} of"
        warn(
            f"{which} {report.rows:,} rows were in {report.table} already, with equal values in all columns, and now "
            f"are there once more; without them it is snapshot {before}"
        )
    if arguments.json:
        told = {**vars(report), "checksum": str(report.checksum), "catalog": describe_catalog(arguments)}
        print_json({**told, **progress.totals.figures})
    else:
        say(format_conversion(report))
        say(f"  catalog: {describe_catalog(arguments)}; files: {report.location}")
    return 0


COMMANDS = (convert,)


def read_mapping(arguments: Options) -> ColumnMapping:
    """What the file and the options say of the columns. Raises ValueError for keys and values that mean nothing."""
    from reqdedup.convert import ColumnMapping

    known = [field.name for field in fields(ColumnMapping)]
    said: dict[str, Any] = {}
    if arguments.mapping:
        try:
            said = tomllib.loads(arguments.mapping.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{arguments.mapping}: TOML required: {error}") from None
        unknown = sorted(set(said) - set(known))
        if unknown:
            raise ValueError(f"{arguments.mapping}: keys among {', '.join(known)} required, found {', '.join(unknown)}")
    for name in known:
        value = getattr(arguments, name)
        if value:
            said[name] = dict(value) if name in ("levels", "rename", "vectors") else value
    if isinstance(said.get("session_gap_s"), timedelta):
        said["session_gap_s"] = said["session_gap_s"].total_seconds()
    missing = [name for name in ("user", "request", "item", "time") if name not in said]
    if "session_gap_s" in said and "request" in missing:
        missing.remove("request")
    if missing:
        raise ValueError(
            f"columns for user, request, item and time required, not found: {', '.join(missing)}; name them with "
            f"{', '.join('--' + name for name in missing)} or in --mapping"
        )
    for name in ("labels", "ids", "exclude", "candidates"):
        if isinstance(said.get(name), str):
            said[name] = [said[name]]
    try:
        if "levels" in said:
            said["levels"] = {name: _level(name, level) for name, level in said["levels"].items()}
        if "vectors" in said:
            said["vectors"] = {name: _width(name, width) for name, width in said["vectors"].items()}
        return ColumnMapping(**said)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{arguments.mapping}: a value of another kind required: {error}; see docs/convert.md"
        ) from None


def _level(name: str, text: object) -> Level:
    from reqdedup.schema import Level

    try:
        return Level(str(text).lower())
    except ValueError:
        raise ValueError(f"level of {name}: request or item required, found {text!r}") from None


def _width(name: str, text: object) -> int:
    try:
        return whole(str(text))
    except ValueError as error:
        raise ValueError(f"width of vector {name}: {error}") from None


def format_conversion(report: ConvertReport) -> str:
    """What came out: size against the source, every column with its level and where it is from, notes."""
    ratio = ""
    if report.bytes and report.source_bytes:
        times = report.source_bytes / report.bytes
        ratio = f", {times:.1f} times smaller" if times >= 1.05 else f", {1 / times:.1f} times as large"
    buckets = f" in {counted(report.num_buckets, 'bucket')}" if report.num_buckets else ""
    rows = [[name, level.value, sources] for name, (sources, level) in report.columns.items()]
    done = " appended" if report.is_append else ""
    but = ", but for what is named as changed" if report.changes else ""
    lines = [
        f"{report.table} ({report.layout.value}){buckets}: {counted(report.rows, 'row')}, "
        f"{counted(report.requests, 'request')}{done}, "
        f"{format_bytes(report.source_bytes)} became {format_bytes(report.bytes)}{ratio}; {report.seconds:.1f} s",
        f"  row for row the same as the source in {counted(len(report.columns), 'column')}{but}: {report.checksum}; "
        f"compared with {report.compared_with}",
        format_table(["column", "level", "from"], rows),
        *(f"  changed: {change}" for change in report.changes),
        *([f"  left out, as you said: {', '.join(report.left_out)}"] if report.left_out else []),
    ]
    return "\n".join([*lines, *(f"  note: {note}" for note in report.notes)])
