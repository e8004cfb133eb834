"""Writing BY_REQUEST from deduplicated input against writing the same rows as SORTED with pyiceberg's `append`.

    python -m benchmarks.storage_write [--case 16k 2k 64 memory]

Ours takes the log as it arrives and does all of its work: spill, sort, write, verify, commit. The baseline gets the
rows in order and bucket by bucket, and each of its lists expanded for next to nothing, as `append` neither sorts nor
repeats them. `append` in bounded memory means pieces of pyiceberg's own target of a file, 512 MB of Arrow: a commit
each (`append`), or all in one transaction (`append_one_commit`). Its third way, a RecordBatchReader, refuses
partitioned tables and, in 0.12, reads the reader to its end before the first file is written, so its memory is the log:
left out.

Both sides read uncompressed Arrow streams. Each measurement is a process of its own that has written a small table
before. The gate: the tables hold the same rows and values. `floor` is what pyarrow needs to lay the finished row groups
of our table into Parquet files, nothing else: no spill, no order, no check. The case `memory` writes one log and
another ten times as long and compares the peaks: with ten times the buckets, as `choose_num_buckets` would have it, and
with as many.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table, TableProperties

from benchmarks.own_process import in_turns, load, measure, ratio_rows, shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog, read_stream, write_stream
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, table_schema, write
from reqdedup.storage.iceberg.datafile import FileSettings
from reqdedup.storage.iceberg.layout import file_schema, table_buckets
from reqdedup.storage.measure.checks import content_checksum
from reqdedup.storage.write.form import fat_rows

TARGETS, FLAT = {"16k": 20.0, "2k": 20.0, "64": 8.0}, 1.1
NUM_BUCKETS, ROUNDS, LONGER = 8, 3, 10
PIECE_BYTES = TableProperties.WRITE_TARGET_FILE_SIZE_BYTES_DEFAULT
OURS, FLOOR = "by_request", "floor"
APPENDS = ("append", "append_one_commit")
VARIANTS = (OURS, *APPENDS, FLOOR)

CASES = {
    "16k": SyntheticLogConfig(
        num_users=60, mean_requests_per_user=3, max_requests_per_user=5, mean_fan_out=150, max_fan_out=1_000
    ),
    "2k": SyntheticLogConfig(
        num_users=1_200, mean_requests_per_user=2, mean_fan_out=40, max_fan_out=200, history_scale=1 / 8, max_history=2048
    ),
    "64": SyntheticLogConfig(
        num_users=18_000, mean_requests_per_user=2, mean_fan_out=40, max_fan_out=200, history_scale=1 / 150, max_history=64
    ),
}  # fmt: skip
"""Logs by the longest history."""

MEMORY = replace(CASES["2k"], num_users=2_000)
"""Long enough for full buffers and row groups; a shorter log takes less."""

WARM = SyntheticLogConfig(num_users=4, mean_fan_out=2, max_fan_out=4, max_history=16)
MODULE = "benchmarks.storage_write"


def build(folder: Path, log: SyntheticLogConfig, *, times_buckets: int = 1, ordered: bool = True) -> dict[str, Any]:
    """The input of both sides: the log as it arrives, and its rows in order, a stream per bucket; its sizes.

    times_buckets: so many times the buckets.  ordered: whether the second is wanted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_buckets = times_buckets * NUM_BUCKETS
    catalog, schema = local_catalog(folder), synthetic_schema(log)
    write_stream(folder / "arriving.arrows", synthesize(log))
    table = create_table(catalog, "bench.ordered", schema, Layout.BY_REQUEST, num_buckets=num_buckets)
    report = write(table, read_stream(folder / "arriving.arrows"))
    source = TableSource(table)
    for bucket in range(num_buckets if ordered else 0):
        groups = [group for group in source.row_groups() if group.bucket == bucket]
        write_stream(folder / f"bucket_{bucket}.arrows", map(source.read_row_group, groups))
    return {
        "rows": report.rows,
        "requests": report.requests,
        "users": report.users,
        "fan_out": round(report.rows / report.requests, 1),
        "max_history": log.max_history,
        "buckets": num_buckets,
    }


def pieces(folder: Path, schema: EngagementSchema) -> Iterator[pa.Table]:
    """Plain rows in order, in tables of one bucket and at most about PIECE_BYTES."""
    for bucket in range(NUM_BUCKETS):
        collected: list[pa.Table] = []
        for batch in read_stream(folder / f"bucket_{bucket}.arrows"):
            rows = fat_rows(batch, schema)
            step = max(1, int(PIECE_BYTES * len(rows) / max(rows.nbytes, 1)))
            for start in range(0, len(rows), step):
                part = rows.slice(start, step)
                if collected and sum(one.nbytes for one in collected) + part.nbytes > PIECE_BYTES:
                    yield pa.concat_tables(collected)
                    collected = []
                collected.append(part)
        if collected:
            yield pa.concat_tables(collected)


def run_variant(catalog: Catalog, folder: Path, variant: str) -> None:
    """Write the log of `folder` in the variant's way, into a table of that name."""
    ordered = catalog.load_table("bench.ordered")
    schema = table_schema(ordered)
    layout = Layout.SORTED if variant in APPENDS else Layout.BY_REQUEST
    table = create_table(catalog, f"bench.{variant}", schema, layout, num_buckets=table_buckets(ordered) or NUM_BUCKETS)
    arrow_schema = file_schema(table, schema, layout)
    if variant == OURS:
        write(table, read_stream(folder / "arriving.arrows"))
    elif variant == "append":
        for piece in pieces(folder, schema):
            table.append(piece.cast(arrow_schema))
    elif variant == "append_one_commit":
        with table.transaction() as transaction:
            for piece in pieces(folder, schema):
                transaction.append(piece.cast(arrow_schema))
    else:
        settings = FileSettings(layout, schema, table.properties)
        for bucket in range(NUM_BUCKETS):
            lay_down(folder / f"bucket_{bucket}.arrows", folder / f"floor_{bucket}.parquet", arrow_schema, settings)


def lay_down(stream: Path, path: Path, schema: pa.Schema, settings: FileSettings) -> None:
    """Write finished row groups into a Parquet file with the settings of BY_REQUEST; no table knows it."""
    writer = None
    for batch in read_stream(stream):
        rows = pa.Table.from_batches([batch]).cast(schema)
        writer = writer or pq.ParquetWriter(path, schema, **settings.of(rows))
        writer.write_table(rows, len(rows))
    if writer is not None:
        writer.close()


def child(folder: Path, variant: str) -> str:
    for name in ("warm", "bench"):
        catalog = local_catalog(folder / name)
        with contextlib.suppress(NoSuchTableError):
            catalog.purge_table(f"bench.{variant}")
        if name == "warm":
            run_variant(catalog, folder / name, variant)
    return measure(partial(run_variant, catalog, folder / "bench", variant))


def check(folder: Path) -> None:
    """Raise ValueError where the tables of the last round do not hold the same rows and values."""
    catalog = local_catalog(folder / "bench")
    found = {name: content_checksum(TableSource(catalog.load_table(f"bench.{name}"))) for name in (OURS, *APPENDS)}
    if len(set(found.values())) > 1:
        raise ValueError(f"equal rows required in all tables, found {found}; nothing is reported")


def run(folder: Path, name: str, log: SyntheticLogConfig, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Result rows of one log."""
    build(folder / "warm", WARM)
    sizes = build(folder / "bench", log)
    found = in_turns(MODULE, VARIANTS, ["--folder", str(folder)], rounds=rounds, compare=False)
    check(folder)
    sizes["bytes"] = _table_bytes(local_catalog(folder / "bench").load_table(f"bench.{OURS}"))
    claim = f"write BY_REQUEST, {name} tokens"
    yield from ratio_rows(
        claim, found, ours=OURS, theirs=APPENDS, targets={"cpu": TARGETS[name]} if name in TARGETS else {}, sizes=sizes
    )
    shares = [floor.cpu / ours.cpu for floor, ours in zip(found[FLOOR], found[OURS])]
    yield {
        "claim": f"{claim}: CPU time that pyarrow alone takes for its files",
        "variant": FLOOR,
        "value": statistics.median(shares),
        "unit": "of the write",
        "target": None,
        "spread": [min(shares), max(shares)],
        "runs": rounds,
        "sizes": sizes,
        "load": load(found),
    }


def run_memory(folder: Path, log: SyntheticLogConfig, *, rounds: int) -> Iterator[dict[str, Any]]:
    """The rows that compare the peaks of a log and of one that is LONGER times as long, in more and
    in equal buckets."""
    found, sizes = {}, {}
    variants = {"once": (1, 1), "buckets in proportion": (LONGER, LONGER), "as many buckets": (LONGER, 1)}
    for name, (users, buckets) in variants.items():
        longer = replace(log, num_users=users * log.num_users)
        build(folder / name / "warm", WARM)
        sizes[name] = build(folder / name / "bench", longer, times_buckets=buckets, ordered=False)
        found[name] = in_turns(MODULE, [OURS], ["--folder", str(folder / name)], rounds=rounds, compare=False)[OURS]
    for name in list(variants)[1:]:
        ratios = [longer.peak / once.peak for once, longer in zip(found["once"], found[name])]
        yield {
            "claim": f"write BY_REQUEST, a log {LONGER} times as long: peak memory",
            "variant": name,
            "value": statistics.median(ratios),
            "unit": "x the peak memory",
            "target": FLAT if name == "buckets in proportion" else None,
            "spread": [min(ratios), max(ratios)],
            "runs": rounds,
            "bytes": {key: statistics.median(one.peak for one in found[key]) for key in ("once", name)},
            "sizes": {key: sizes[key] for key in ("once", name)},
            "load": load(found),
        }


def _table_bytes(table: Table) -> int:
    return sum(task.file.file_size_in_bytes for task in table.scan().plan_files())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage_write", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--case", nargs="+", choices=[*CASES, "memory"], default=[*CASES, "memory"], help="some of them"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"processes per variant (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the users, one round; not recorded")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(child(arguments.folder, arguments.measure))
        return 0
    rounds, share = (1, 50) if arguments.quick else (arguments.rounds, 1)
    rows: list[dict[str, Any]] = []
    for name in arguments.case:
        log = MEMORY if name == "memory" else CASES[name]
        log = replace(log, num_users=max(log.num_users // share, 1))
        with tempfile.TemporaryDirectory(prefix="storage_write") as temporary:
            folder = Path(temporary)
            found = (
                run_memory(folder, log, rounds=rounds) if name == "memory" else run(folder, name, log, rounds=rounds)
            )
            for row in found:
                rows.append(row)
                print(shown(row), flush=True)
    if (rounds, share) == (ROUNDS, 1):
        print(write_results("storage_write", rows, replaced=tuple({row["claim"] for row in rows})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
