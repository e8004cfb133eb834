"""Bucket join against full hash joins of DuckDB, Polars and Acero, and against the same engines run per bucket.

    python -m benchmarks.storage_join --rows 5000000

Two tables of `--rows` rows, late labels for 99% of the impressions, joined by (user, request, item). `full` reads the
shuffled tables, as an engine finds them; `per_bucket` reads the bucketed ones bucket by bucket. Everyone reads Parquet,
streams the joined batches and sums the same columns of them, which is the correctness gate. Each measurement is a process
of its own, so that its peak memory is its own; variants take turns, the median of the rounds is reported. Time and memory
leave imports out. Arrow allocates from the system for everyone: its default pool keeps some 100 MB that nobody uses.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table import Table

from reqdedup.encoding import BLOB_TYPE, blobs_from_numpy, deduplicated_schema
from reqdedup.schema import HISTORY_ITEM_ID, Column, EngagementSchema, Kind, Level
from reqdedup.storage import Layout, bucket_join, create_table, write

KEYS = ("user_id", "request_id", "item_id")
ADDED = ("purchase", "dwell_s")
FAN_OUT, REQUESTS_PER_USER, NUM_BUCKETS, MISSING = 40, 4, 16, 0.01
BLOCK_REQUESTS = 8192
THREADS = 2

_KEY_COLUMNS = (
    *(Column(name=name, dtype="int64", level=Level.KEY) for name in KEYS),
    Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
)
LEFT = EngagementSchema(
    (
        *_KEY_COLUMNS,
        Column(name="position", dtype="int32", level=Level.ITEM),
        Column(name="item_category", dtype="int32", level=Level.ITEM),
        Column(name="click", dtype="int32", level=Level.LABEL),
    )
)
RIGHT = EngagementSchema(
    (
        *_KEY_COLUMNS,
        Column(name="purchase", dtype="int32", level=Level.LABEL),
        Column(name="dwell_s", dtype="float32", level=Level.ITEM),
    )
)


def left_schema(history: int) -> EngagementSchema:
    """Impressions, with a history of so many events per request where it is not 0."""
    column = Column(name=HISTORY_ITEM_ID, dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
    return LEFT.with_columns(column) if history else LEFT


def impressions(num_rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Columns of both tables, block by block; ids use all 62 bits, as hashed strings do."""
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, BLOCK_REQUESTS * FAN_OUT):
        rows = min(num_rows - start, BLOCK_REQUESTS * FAN_OUT)
        requests = -(-rows // FAN_OUT)
        users = np.repeat(rng.integers(0, 2**62, -(-requests // REQUESTS_PER_USER)), REQUESTS_PER_USER)[:requests]
        request_of_row = np.arange(rows) // FAN_OUT
        yield {
            "user_id": users[request_of_row],
            "request_id": rng.integers(0, 2**62, requests)[request_of_row],
            "item_id": rng.integers(0, 2**40, rows),
            "request_ts": (1_760_000_000_000_000 + rng.integers(0, 10**12, requests))[request_of_row],
            "position": (np.arange(rows) % FAN_OUT).astype(np.int32),
            "item_category": rng.integers(0, 64, rows).astype(np.int32),
            "click": rng.integers(0, 2, rows).astype(np.int32),
            "purchase": rng.integers(0, 2, rows).astype(np.int32),
            "dwell_s": rng.random(rows).astype(np.float32),
            "has_label": rng.random(rows) >= MISSING,
        }


def batches(num_rows: int, schema: EngagementSchema, *, history: int, labelled: bool) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(1)
    for block in impressions(num_rows):
        keep = block["has_label"] if labelled else slice(None)
        arrays = []
        for field in deduplicated_schema(schema):
            if field.type == BLOB_TYPE:
                request_of_row = np.arange(len(block["item_id"]), dtype=np.int32) // FAN_OUT
                events = rng.integers(0, 2**40, (int(request_of_row[-1]) + 1) * history)
                blobs = blobs_from_numpy(events, np.arange(0, len(events) + 1, history))
                arrays.append(pa.DictionaryArray.from_arrays(pa.array(request_of_row), blobs))
            else:
                arrays.append(pa.array(block[field.name][keep]).cast(field.type))
        yield pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(schema))


def open_catalog(directory: Path) -> Catalog:
    return load_catalog(
        "bench", type="sql", uri=f"sqlite:///{directory}/catalog.db", warehouse=f"file://{directory}/lake"
    )


def build(directory: Path, num_rows: int, history: int) -> None:
    catalog = open_catalog(directory)
    for name, schema in (("left", left_schema(history)), ("right", RIGHT)):
        for layout in (Layout.BY_REQUEST, Layout.SHUFFLED):
            table = create_table(catalog, f"bench.{name}_{layout.value}", schema, layout, num_buckets=NUM_BUCKETS)
            if table.current_snapshot() is None:
                write(table, batches(num_rows, schema, history=history, labelled=name == "right"))


def paths(table: Table) -> dict[int | None, list[str]]:
    """Data files by bucket."""
    found: dict[int | None, list[str]] = {}
    for task in table.scan().plan_files():
        bucket = task.file.partition[0] if table.spec().fields else None
        found.setdefault(bucket, []).append(task.file.file_path.removeprefix("file://"))
    return dict(sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0]))


def duckdb_join(left: list[str], right: list[str]) -> Iterable[pa.RecordBatch]:
    import duckdb

    connection = duckdb.connect(config={"threads": THREADS, "preserve_insertion_order": False})
    return connection.sql(
        f"""select l.*, r.purchase, r.dwell_s from read_parquet({left}, hive_partitioning = false) l
        join read_parquet({right}, hive_partitioning = false) r using ({", ".join(KEYS)})"""
    ).to_arrow_reader()


def polars_join(left: list[str], right: list[str]) -> Iterable[pa.RecordBatch]:
    import polars as pl

    frame = pl.scan_parquet(left, hive_partitioning=False).join(
        pl.scan_parquet(right, hive_partitioning=False).select(*KEYS, *ADDED), on=list(KEYS)
    )
    for piece in frame.collect_batches(maintain_order=False):
        yield from piece.to_arrow().to_batches()


def acero_join(left: list[str], right: list[str]) -> Iterable[pa.RecordBatch]:
    import pyarrow.acero as acero
    import pyarrow.dataset as ds

    def scan(files: list[str], columns: list[str]) -> acero.Declaration:
        options = acero.ScanNodeOptions(ds.dataset(files), columns={name: pc.field(name) for name in columns})
        names = {name: pc.field(name) for name in columns}
        return acero.Declaration(
            "project", acero.ProjectNodeOptions(list(names.values()), list(names)), [acero.Declaration("scan", options)]
        )

    left_columns = ds.dataset(left).schema.names
    options = acero.HashJoinNodeOptions("inner", list(KEYS), list(KEYS), left_columns, list(ADDED))
    inputs = [scan(left, left_columns), scan(right, [*KEYS, *ADDED])]
    return acero.Declaration("hashjoin", options, inputs).to_reader(use_threads=True)


ENGINES: dict[str, Callable[[list[str], list[str]], Iterable[pa.RecordBatch]]] = {
    "duckdb": duckdb_join,
    "polars": polars_join,
    "acero": acero_join,
}
VARIANTS = ["reqdedup", *(f"{engine}_{how}" for engine in ENGINES for how in ("full", "per_bucket"))]


def joined(catalog: Catalog, variant: str) -> Iterator[pa.RecordBatch]:
    engine, _, how = variant.partition("_")
    form = "shuffled" if how == "full" else "by_request"
    left, right = (catalog.load_table(f"bench.{name}_{form}") for name in ("left", "right"))
    if engine == "reqdedup":
        yield from bucket_join(left, right, on=KEYS, columns=ADDED, threads=THREADS).batches()
        return
    left_paths, right_paths = paths(left), paths(right)
    for bucket in left_paths:
        yield from ENGINES[engine](left_paths[bucket], right_paths[bucket])


def checksum(batch: pa.RecordBatch) -> np.ndarray:
    """Cheap numbers that depend on which rows met: [3] int64, to be added up modulo 2^64."""
    item, purchase, click = (batch.column(name).to_numpy() for name in ("item_id", "purchase", "click"))
    return np.array([batch.num_rows, np.count_nonzero(purchase & click), (item * purchase).sum()], np.int64)


def memory_bytes(name: str) -> int:
    """VmRSS or VmHWM of this process. ru_maxrss is no use here: a child starts with its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


def measure(directory: Path, variant: str) -> dict[str, object]:
    """One pass in this process: seconds, CPU seconds, bytes of memory above the start, checksum. Linux only."""
    if variant != "reqdedup":
        importlib.import_module({"acero": "pyarrow.acero"}.get(engine := variant.partition("_")[0], engine))
    catalog = open_catalog(directory)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    resident = memory_bytes("VmRSS")
    before = resource.getrusage(resource.RUSAGE_SELF)
    start, total = time.perf_counter(), np.zeros(3, np.int64)
    for batch in joined(catalog, variant):
        total += checksum(batch)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_bytes": memory_bytes("VmHWM") - resident,
        "checksum": total.tolist(),
    }


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def run(directory: Path, num_rows: int, history: int, rounds: int) -> list[dict[str, Any]]:
    """Result rows, one per variant. Raises RuntimeError where two variants do not agree on the result."""
    build(directory, num_rows, history)
    variants = [v for v in VARIANTS if not (history and v.startswith("acero"))]  # Acero joins no tables with lists
    runs: dict[str, list[dict]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            command = ["env", "ARROW_DEFAULT_MEMORY_POOL=system", sys.executable, "-m", "benchmarks.storage_join"]
            command += ["--directory", str(directory), "--measure", variant]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{variant} failed:\n{done.stderr}")
            runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{variant}: {runs[variant][-1]['seconds']:.2f} s", file=sys.stderr)
    sums = {variant: one["checksum"] for variant, of_variant in runs.items() for one in of_variant}
    if len({tuple(one) for one in sums.values()}) != 1:
        raise RuntimeError(f"the joins differ: {sums}")
    names = ("reqdedup", "pyarrow", "pyiceberg", "duckdb", "polars", "numpy")
    setting = {
        "rows": num_rows,
        "history": history,
        "rounds": rounds,
        "threads": THREADS,
        "buckets": NUM_BUCKETS,
        "fan_out": FAN_OUT,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in names},
        "commit": commit(),
    }
    rows: list[dict[str, Any]] = []
    for variant, of_variant in runs.items():
        row: dict[str, Any] = {"variant": variant}
        for name in ("seconds", "cpu_seconds", "peak_bytes"):
            values = [float(one[name]) for one in of_variant]
            ours = statistics.median(float(one[name]) for one in runs["reqdedup"])
            row |= {name: statistics.median(values), f"{name}_spread": [min(values), max(values)]}
            row[f"{name}_ratio"] = statistics.median(values) / ours if ours else float("nan")
        rows.append(row | setting)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of each table (default 5,000,000)")
    parser.add_argument(
        "--history", type=int, default=0, help="events in each request's history (default 0: no column)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes per variant (default 3)")
    parser.add_argument(
        "--directory", type=Path, help="keep the tables here, for another run of the same --rows and --history"
    )
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.directory, arguments.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="storage_join") as temporary:
        directory = arguments.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        rows = run(directory, arguments.rows, arguments.history, arguments.rounds)
    for row in rows:
        print(json.dumps(row))
    print(f"\n{arguments.rows:,} x {arguments.rows:,} rows; ratios are theirs over ours", file=sys.stderr)
    for row in rows:
        print(
            f"{row['variant']:20} {row['seconds']:8.2f} s ({row['seconds_ratio']:5.2f}x)   CPU {row['cpu_seconds']:7.2f} s "
            f"({row['cpu_seconds_ratio']:5.2f}x)   peak {row['peak_bytes'] / 2**20:8.0f} MB ({row['peak_bytes_ratio']:5.2f}x)",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
