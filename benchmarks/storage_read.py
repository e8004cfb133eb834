"""Reading one sequence column of a whole table: BY_REQUEST against the sorted table of plain lists.

    python -m benchmarks.storage_read [--users 20]

Two ways of reading, each against its like. `whole`: the column as one Arrow table, by pyiceberg's `to_arrow` for both.
`stream`: batch after batch, none kept; ours as `TableSource` gives them, lists by the leanest reader there is, pyarrow
in pieces of 64 rows (pyiceberg's own batch reader takes twice its CPU and fifteen times its memory). Lists come back F
times; blobs once per request, with an index per row. Each measurement is a process of its own. The gate, after the
clock has
stopped: both hold the same value on every row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import Table

from benchmarks.own_process import in_turns, measure, ratio_rows, shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog
from reqdedup.dedup.encoding import lists_from_blobs
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.schema import HISTORY_ITEM_ID
from reqdedup.storage import Layout, TableSource, create_table, write

COLUMN = HISTORY_ITEM_ID
NUM_BUCKETS, USERS, ROUNDS = 4, 40, 5
TARGETS = {"whole": {"cpu": 5.0, "peak": 15.0}, "stream": {"cpu": 5.0}}
LEAN_ROWS, REPEATS = 64, 20
LAYOUTS = (Layout.BY_REQUEST, Layout.SORTED)
VARIANTS = [f"{layout.value}_{way}" for way in ("whole", "stream") for layout in LAYOUTS]


def log_of(users: int) -> SyntheticLogConfig:
    """Up to 16K tokens, F about 150, one to five requests per user."""
    return SyntheticLogConfig(
        num_users=users, mean_requests_per_user=3, max_requests_per_user=5, mean_fan_out=150, max_fan_out=1_000
    )


def build(folder: Path, log: SyntheticLogConfig, layouts: Sequence[Layout] = LAYOUTS) -> dict[str, Any]:
    """Write the tables; the sizes that belong to a result."""
    catalog, schema = local_catalog(folder), synthetic_schema(log)
    for layout in layouts:
        report = write(
            create_table(catalog, f"bench.{layout.value}", schema, layout, num_buckets=NUM_BUCKETS), synthesize(log)
        )
    return {
        "rows": report.rows,
        "requests": report.requests,
        "users": report.users,
        "fan_out": round(report.rows / report.requests, 1),
        "max_history": log.max_history,
        "column": COLUMN,
        "buckets": NUM_BUCKETS,
    }


def read(table: Table, way: str) -> Iterator[pa.Array | pa.ChunkedArray]:
    """The column, piece by piece or whole."""
    is_blob = TableSource(table).layout is Layout.BY_REQUEST
    scan = table.scan(selected_fields=(COLUMN,))
    if way == "whole":
        yield scan.to_arrow(dictionary_columns=(COLUMN,) if is_blob else ()).column(COLUMN)
    elif is_blob:
        for batch in TableSource(table).batches([COLUMN]):
            yield batch.column(COLUMN)
    else:
        for task in scan.plan_files():
            with pq.ParquetFile(task.file.file_path.removeprefix("file://"), memory_map=True) as file:
                for batch in file.iter_batches(batch_size=LEAN_ROWS, columns=[COLUMN], use_threads=False):
                    yield batch.column(0)


def checksum(table: Table) -> list[int]:
    """Rows, events, and a sum over all rows of event * (its place in the history), modulo 2^64: the gate."""
    column, total = TableSource(table).schema[COLUMN], np.zeros(3, np.uint64)
    for piece in read(table, "stream"):
        lists, rows_of = piece, np.ones(len(piece), np.int64)
        if pa.types.is_dictionary(piece.type):
            lists = lists_from_blobs(piece.dictionary, column)
            rows_of = np.bincount(piece.indices.to_numpy(), minlength=len(lists))
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        values = lists.flatten().to_numpy().view(np.uint64)
        place = np.arange(1, len(values) + 1) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        weight = place * np.repeat(rows_of, lengths)
        total += np.array([rows_of.sum(), (lengths * rows_of).sum(), 0], np.uint64)
        total[2] += np.sum(values * weight.astype(np.uint64), dtype=np.uint64)
    return [int(number) for number in total]


def child(folder: Path, variant: str) -> str:
    layout, _, way = variant.rpartition("_")
    catalog = local_catalog(folder)
    table = catalog.load_table(f"bench.{layout}")
    for _ in read(catalog.load_table(f"warm.{layout}"), way):  # imports and first calls
        pass

    def run() -> None:
        for _ in read(table, way):
            pass

    return measure(run, check=lambda: checksum(table), repeats=REPEATS if layout == Layout.BY_REQUEST.value else 1)


def run(folder: Path, *, users: int = USERS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Result rows of a log of so many users."""
    sizes = build(folder, log_of(users))
    build_warm(folder)
    found = in_turns("benchmarks.storage_read", VARIANTS, ["--folder", str(folder)], rounds=rounds)
    rows: list[dict[str, Any]] = []
    for way in ("whole", "stream"):
        ours, theirs = (f"{layout.value}_{way}" for layout in LAYOUTS)
        claim = f"read one sequence column, {way}"
        rows += ratio_rows(claim, found, ours=ours, theirs=[theirs], targets=TARGETS[way], sizes=sizes)
    return rows


def build_warm(folder: Path) -> None:
    """Tables of two users, read before anything is measured."""
    log = SyntheticLogConfig(num_users=2, mean_fan_out=2, max_fan_out=4, max_history=16)
    for layout in LAYOUTS:
        table = create_table(
            local_catalog(folder), f"warm.{layout.value}", synthetic_schema(log), layout, num_buckets=1
        )
        write(table, synthesize(log))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage_read", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=USERS, help=f"of the log; the results hold a run of {USERS}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"processes per variant (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="2 users, one round; nothing is recorded")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(child(arguments.folder, arguments.measure))
        return 0
    users, rounds = (2, 1) if arguments.quick else (arguments.users, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), users=users, rounds=rounds)
    for row in rows:
        print(shown(row))
    if (users, rounds) == (USERS, ROUNDS):
        print(write_results("storage_read", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
