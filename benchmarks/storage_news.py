"""Bytes and CPU on a log that nobody made for us, beside the files of Polars, DuckDB and pyiceberg.

    python -m benchmarks.storage_news [--rows 190000 2000000] [--rounds 5]

The log is `benchmarks.news_log`: short histories of popular items, one request a user. Bytes, by column:

    control      the same rows with dense ids, shuffled, at pyiceberg's defaults
    limit        every distinct history stored once, with the ids that the table has, at the table's own level
    BY_REQUEST, SORTED_LARGE_PAGES   one bucket, as `choose_num_buckets` says; with dense ids, and with texts
    BY_REQUEST, compact    with the encodings that older readers in Java refuse (docs/decisions/0012)
    polars, duckdb                   the same rows with dense ids, sorted by the same three keys, in zstd files
    pyiceberg    `append` of the sorted rows
    order 0      what a coder of each id by its frequency takes, which no reader knows: distinct histories, and the
                 candidates of a request without their order; the other columns as BY_REQUEST has them

CPU, each in a process of its own, with one thread and with all: `write` of deduplicated batches, `convert` of the
Parquet file with its verification, and Polars' `scan_parquet().sort().sink_parquet()`. `floor` is what pyarrow takes to
lay down the finished row groups. The gate: all of them hold the same rows.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table

from benchmarks.news_log import NewsLog
from benchmarks.own_process import Measured, in_turns, load, measure, shown
from benchmarks.record import write_results
from benchmarks.storage_write import lay_down
from benchmarks.tables import local_catalog, read_stream, write_stream
from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.dedup.checksum import content_checksum
from reqdedup.storage import Layout, TableSource, compression_report, create_table, table_schema, write
from reqdedup.storage.iceberg.datafile import FileSettings
from reqdedup.storage.iceberg.layout import file_schema
from reqdedup.storage.iceberg.paths import local_path
from reqdedup.storage.iceberg.settings import COMPACT as COMPACT_ENCODINGS
from reqdedup.storage.iceberg.settings import ENCODINGS_PROPERTY

ROWS, ROUNDS = (190_000, 2_000_000), 5
MODULE = "benchmarks.storage_news"
KEYS = ["user_id", "request_id", "item_id"]
HISTORY, WHOLE = "history_item_id", "all columns"
COMPACT, ORDER_0 = "BY_REQUEST, compact", "order 0"
WRITE, CONVERT, POLARS, FLOOR = "write", "convert", "polars", "floor"
VARIANTS = (WRITE, CONVERT, POLARS, FLOOR)
MAPPING = ColumnMapping(user="user_id", request="request_id", item="item_id", time="request_ts", labels=["click"])
TEXTS = ColumnMapping(
    user="user_id", request="request_id", item="item_id", time="request_ts", labels=["click"], ids=[HISTORY]
)
TARGETS = {"BY_REQUEST": None, "SORTED_LARGE_PAGES": 24.0}
"""Of the history column, times fewer bytes than the control."""

OF_LIMIT, TIMES_FEWER = 0.95, {"polars": 1.5, "duckdb": 2.4}
CPU_TARGETS = {WRITE: 1.2, CONVERT: 2.0}


def tables_of(folder: Path, rows: int) -> dict[str, dict[str, int]]:
    """By table the compressed bytes of each column of one log, and of all; the gate is passed."""
    folder.mkdir(parents=True, exist_ok=True)
    dense, texts = NewsLog(rows).write(folder)
    catalog = local_catalog(folder)
    made: dict[str, dict[str, int]] = {}
    ours: dict[str, Table] = {}
    for name, source, layout in (
        ("control", dense, Layout.SHUFFLED),
        ("pyiceberg", dense, Layout.SORTED),
        ("BY_REQUEST", dense, Layout.BY_REQUEST),
        ("SORTED_LARGE_PAGES", dense, Layout.SORTED_LARGE_PAGES),
        ("BY_REQUEST, texts", texts, Layout.BY_REQUEST),
    ):
        mapping = MAPPING if source is dense else TEXTS
        table = f"news.table_{len(made)}"
        convert_table(source, catalog, table, mapping, layout=layout, num_buckets=1)
        ours[name] = catalog.load_table(table)
        made[name] = bytes_of([local_path(path) for path in TableSource(ours[name]).paths])
    compact_table = catalog.load_table(copy_of(catalog, ours["BY_REQUEST"]))
    ours[COMPACT] = compact_table
    made[COMPACT] = bytes_of([local_path(path) for path in TableSource(compact_table).paths])
    same = {content_checksum(TableSource(ours[name])) for name in ours if name != "BY_REQUEST, texts"}
    if len(same) != 1:
        raise ValueError(f"equal rows in all tables of dense ids required, found {same}; nothing is reported")
    for name, sink in (("polars", sort_with_polars), ("duckdb", sort_with_duckdb)):
        path = folder / f"{name}.parquet"
        sink(dense, path)
        made[name] = bytes_of([path])
        if pq.read_metadata(path).num_rows != pq.read_metadata(dense).num_rows:
            raise ValueError(f"{name}: all rows required, found {pq.read_metadata(path).num_rows}; nothing is reported")
    made[ORDER_0] = order_0_bytes(dense, made["BY_REQUEST"])
    for name in ("BY_REQUEST", "SORTED_LARGE_PAGES", "BY_REQUEST, texts"):
        report = compression_report({name: ours[name]}).to_pylist()
        made[f"limit of {name}"] = {row["column"]: row["store_once_bytes"] for row in report}
    return made


def copy_of(catalog: Catalog, table: Table) -> str:
    """Name of a table of the same rows whose columns may have any encoding."""
    name = "news.compact"
    copy = create_table(catalog, name, table_schema(table), Layout.BY_REQUEST, num_buckets=1)
    with copy.transaction() as transaction:
        transaction.set_properties({ENCODINGS_PROPERTY: COMPACT_ENCODINGS})
    write(copy, TableSource(table).batches())
    return name


def order_0_bytes(source: Path, ours: Mapping[str, int]) -> dict[str, int]:
    """Bytes by column of ids that are coded by their frequency alone. ours: of the other columns."""
    rows = pl.read_parquet(source, columns=["request_id", "item_id", HISTORY])
    histories = rows.select(HISTORY).unique()[HISTORY].explode().drop_nulls()
    fan_outs = rows.group_by("request_id").len()["len"].to_list()
    free_bits = sum(math.lgamma(fan_out + 1) for fan_out in fan_outs) / math.log(2)
    found = dict(ours) | {
        HISTORY: round(entropy_bits(histories) / 8),
        "item_id": round((entropy_bits(rows["item_id"]) - free_bits) / 8),
    }
    return found | {WHOLE: sum(size for name, size in found.items() if name != WHOLE)}


def entropy_bits(values: pl.Series) -> float:
    """Order-0 entropy of all values together."""
    counts = values.value_counts()["count"].to_numpy().astype(float)
    return float((counts * -np.log2(counts / counts.sum())).sum())


def bytes_of(paths: Sequence[Any]) -> dict[str, int]:
    """Compressed bytes by column, and of all columns."""
    found: dict[str, int] = {}
    for path in paths:
        footer = pq.read_metadata(path)
        for group in (footer.row_group(index) for index in range(footer.num_row_groups)):
            for leaf in (group.column(index) for index in range(group.num_columns)):
                name = leaf.path_in_schema.partition(".")[0]
                found[name] = found.get(name, 0) + leaf.total_compressed_size
    return found | {WHOLE: sum(found.values())}


def sort_with_polars(source: Path, target: Path) -> None:
    pl.scan_parquet(source).sort(KEYS).sink_parquet(target, compression="zstd")


def sort_with_duckdb(source: Path, target: Path) -> None:
    duckdb.execute(
        f"COPY (SELECT * FROM '{source}' ORDER BY {', '.join(KEYS)}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
    )


def bytes_rows(folder: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Result rows of the bytes of one log."""
    made = tables_of(folder, rows)
    control = made["control"][HISTORY]
    for name, columns in made.items():
        print(f"{name}: {', '.join(f'{column} {size:,}' for column, size in columns.items())}", file=sys.stderr)
    sizes = {"rows": rows, "columns": made}
    for name in (
        "BY_REQUEST",
        "SORTED_LARGE_PAGES",
        "BY_REQUEST, texts",
        COMPACT,
        "polars",
        "duckdb",
        "pyiceberg",
        ORDER_0,
    ):
        limit = made.get(f"limit of {name}", {}).get(HISTORY)
        yield {
            "claim": f"news log, {rows:,} rows: history column against the shuffled control with dense ids",
            "variant": name,
            "value": control / made[name][HISTORY],
            "unit": "x fewer bytes",
            "target": TARGETS.get(name),
            "bytes": made[name][HISTORY],
            "fraction_of_limit": limit / made[name][HISTORY] if limit else None,
            "fraction_of_limit_target": OF_LIMIT if limit else None,
            "sizes": sizes,
        }
    for other, target in {**TIMES_FEWER, "pyiceberg": None}.items():
        for name in ("BY_REQUEST", "SORTED_LARGE_PAGES", COMPACT, ORDER_0):
            yield {
                "claim": f"news log, {rows:,} rows: whole table against {other}'s sorted files",
                "variant": name,
                "value": made[other][WHOLE] / made[name][WHOLE],
                "unit": "x fewer bytes",
                "target": target if name == "BY_REQUEST" else None,
                "bytes": made[name][WHOLE],
                "sizes": sizes,
            }


def build(folder: Path, rows: int) -> dict[str, Any]:
    """The inputs of the timed variants: the log as Parquet, as deduplicated batches, and as finished row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    dense, _ = NewsLog(rows).write(folder)
    catalog = local_catalog(folder)
    # in order of arrival: what a log hands to the writer
    convert_table(dense, catalog, "news.arriving", MAPPING, layout=Layout.ARRIVAL)
    arriving = TableSource(catalog.load_table("news.arriving"))
    write_stream(folder / "arriving.arrows", arriving.batches())
    report = write(ordered_table(folder), read_stream(folder / "arriving.arrows"))
    write_stream(folder / "ordered.arrows", TableSource(ordered_table(folder)).batches())
    return {"rows": report.rows, "requests": report.requests, "users": report.users, "buckets": 1}


def ordered_table(folder: Path, name: str = "ordered") -> Table:
    catalog = local_catalog(folder)
    schema = table_schema(catalog.load_table("news.arriving"))
    return create_table(catalog, f"news.{name}", schema, Layout.BY_REQUEST, num_buckets=1)


def run_variant(folder: Path, variant: str) -> None:
    if variant == WRITE:
        write(ordered_table(folder, WRITE), read_stream(folder / "arriving.arrows"))
    elif variant == CONVERT:
        convert_table(folder / "dense.parquet", local_catalog(folder), f"news.{CONVERT}", MAPPING, num_buckets=1)
    elif variant == POLARS:
        sort_with_polars(folder / "dense.parquet", folder / "sorted.parquet")
    else:
        table = ordered_table(folder)
        schema = table_schema(table)
        settings = FileSettings(Layout.BY_REQUEST, schema, table.properties)
        arrow_schema: pa.Schema = file_schema(table, schema, Layout.BY_REQUEST)
        lay_down(folder / "ordered.arrows", folder / "floor.parquet", arrow_schema, settings)


def child(folder: Path, variant: str) -> str:
    for name in ("warm", "bench"):
        with suppress(NoSuchTableError):
            local_catalog(folder / name).purge_table(f"news.{variant}")
    run_variant(folder / "warm", variant)
    return measure(partial(run_variant, folder / "bench", variant))


def cpu_rows(folder: Path, rows: int, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Result rows of CPU and memory of one log: ours over Polars', the lower the better."""
    build(folder / "warm", 2_000)
    sizes = build(folder / "bench", rows)
    for threads in (1, 0):
        with environment({name: str(threads) for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS")} if threads else {}):
            found = in_turns(MODULE, VARIANTS, ["--folder", str(folder)], rounds=rounds, compare=False)
        yield from _ratios(f"news log, {rows:,} rows, {'one thread' if threads else 'all cores'}", found, sizes)


def _ratios(claim: str, found: Mapping[str, Sequence[Measured]], sizes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, name in (("cpu", "CPU time"), ("peak", "peak memory"), ("wall", "wall time")):
        for variant in (WRITE, CONVERT, FLOOR):
            own, other = ([getattr(one, metric) for one in found[key]] for key in (variant, POLARS))
            ratios = [a / b for a, b in zip(own, other)]
            yield {
                "claim": f"{claim}: {name} of a write over Polars' sort and sink",
                "variant": variant,
                "value": statistics.median(ratios),
                "unit": "x theirs",
                "target": {"cpu": CPU_TARGETS.get(variant), "peak": 1.0}.get(metric) if variant != FLOOR else None,
                "spread": [min(ratios), max(ratios)],
                "runs": len(ratios),
                "ours": statistics.median(own),
                "theirs": statistics.median(other),
                "sizes": sizes,
                "load": load(found),
            }


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables for the children."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run(folder: Path, rows: int, *, rounds: int) -> Iterator[dict[str, Any]]:
    yield from bytes_rows(folder / "bytes", rows)
    yield from cpu_rows(folder / "cpu", rows, rounds=rounds)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage_news", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="of the logs")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"processes per variant (default {ROUNDS})")
    parser.add_argument("--bytes-only", action="store_true", help="no times; nothing is recorded")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(child(arguments.folder, arguments.measure))
        return 0
    rows: list[dict[str, Any]] = []
    for count in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="storage_news") as folder:
            found = (
                bytes_rows(Path(folder), count)
                if arguments.bytes_only
                else run(Path(folder), count, rounds=arguments.rounds)
            )
            for row in found:
                rows.append(row)
                print(shown(row), flush=True)
    if not arguments.bytes_only and tuple(arguments.rows) == ROWS and arguments.rounds == ROUNDS:
        print(write_results("storage_news", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
