"""Bucket join against full hash joins of DuckDB, Polars and Acero, and against the same engines run per bucket.

    python -m benchmarks.storage_join [--rows 5000000] [--history 0 64] [--quick]

Two tables of `--rows` rows, late labels for 99% of the impressions, joined by (user, request, item). `full` reads the
shuffled tables, as an engine finds them; `per_bucket` reads the bucketed, sorted ones bucket by bucket, the files that
our join reads (`reqdedup_compact` reads those of tables with compact encodings). Everyone has the same threads, streams
the joined batches with the same columns, and sums three of them. Rows and sums must agree, on small tables before
anything is timed, with the histories, and in every timed run.

Histories are lists in the shuffled tables and blobs in the bucketed ones. Our batches keep them as dictionaries, as the
loader wants them; the engines hand them out per row, which is part of what a join costs there.
Acero has no full join with
histories: its hash join takes no lists.

Each measurement is a process of its own that has joined the small tables before, so that imports and first calls are
left out. `limit` is pyarrow decoding the columns of both bucketed tables with as many threads, and nothing else. Arrow
allocates from the system for everyone, which is best for Acero too; DuckDB and Polars have their own allocators. Of
other settings, DuckDB's batch sizes and Polars' engines were tried, and none was better than the defaults.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from benchmarks.own_process import METRICS, Measured, in_turns, load, measure, ratio_rows, shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog
from reqdedup.dedup.encoding import BLOB_TYPE, blobs_from_numpy, deduplicated_schema, numpy_from_blobs
from reqdedup.schema import HISTORY_ITEM_ID, Column, EngagementSchema, Kind, Level
from reqdedup.storage import Layout, bucket_join, create_table, table_schema, write
from reqdedup.storage.iceberg.settings import COMPACT, ENCODINGS_PROPERTY

KEYS = ("user_id", "request_id", "item_id")
ADDED = ("purchase", "dwell_s")
FAN_OUT, REQUESTS_PER_USER, NUM_BUCKETS, MISSING = 40, 4, 16, 0.01
BLOCK_REQUESTS = 8192
ROWS, WARM_ROWS, HISTORIES, THREADS = 5_000_000, 4_000, (0, 64), 2
ROUNDS, ROUNDS_WITH_HISTORY = 5, 3
FULL_TARGETS = {"cpu": 4.0, "wall": 4.0, "peak": 3.5}
PER_BUCKET_TARGETS = {"cpu": 1.0, "wall": 1.0}

FORMS = {"by_request": Layout.BY_REQUEST, "compact": Layout.BY_REQUEST, "shuffled": Layout.SHUFFLED}
"""Of each table; `compact` has the encodings that some readers of Iceberg refuse (docs/decisions/0012)."""

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


def build(folder: Path, num_rows: int, history: int) -> None:
    """The tables to be joined, and small ones for the warm-up; those that are there already are kept."""
    catalog = local_catalog(folder)
    for namespace, rows in (("warm", WARM_ROWS), ("bench", num_rows)):
        for name, schema in (("left", left_schema(history)), ("right", RIGHT)):
            for form, layout in FORMS.items():
                table = create_table(catalog, f"{namespace}.{name}_{form}", schema, layout, num_buckets=NUM_BUCKETS)
                if table.current_snapshot() is None:
                    if form == "compact":
                        with table.transaction() as transaction:
                            transaction.set_properties({ENCODINGS_PROPERTY: COMPACT})
                    write(table, batches(rows, schema, history=history, labelled=name == "right"))


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
OURS, OURS_COMPACT, LIMIT = "reqdedup", "reqdedup_compact", "limit"
FULL, PER_BUCKET = ([f"{engine}_{how}" for engine in ENGINES] for how in ("full", "per_bucket"))
VARIANTS = [OURS, OURS_COMPACT, LIMIT, *FULL, *PER_BUCKET]


def joined(catalog: Catalog, variant: str, namespace: str) -> Iterator[pa.RecordBatch]:
    """The joined batches, in the variant's way."""
    engine, _, how = variant.partition("_")
    form = {"full": "shuffled", "compact": "compact"}.get(how, "by_request")
    left, right = (catalog.load_table(f"{namespace}.{name}_{form}") for name in ("left", "right"))
    if engine == OURS:
        yield from bucket_join(left, right, on=KEYS, columns=ADDED, threads=THREADS).batches()
        return
    left_paths, right_paths = paths(left), paths(right)
    for bucket in left_paths:
        yield from ENGINES[engine](left_paths[bucket], right_paths[bucket])


def decode(catalog: Catalog, namespace: str) -> int:
    """Read what our join reads with bare pyarrow, file beside file, and let go of it; the rows read."""

    def read(path: str, columns: Sequence[str], blobs: Sequence[str]) -> int:
        with pq.ParquetFile(path, memory_map=True, read_dictionary=blobs, page_checksum_verification=True) as file:
            groups = range(file.num_row_groups)
            return sum(len(file.read_row_group(group, columns=columns, use_threads=False)) for group in groups)

    tables = [catalog.load_table(f"{namespace}.{name}_by_request") for name in ("left", "right")]
    wanted = [table_schema(tables[0]).names, (*KEYS, *ADDED)]
    blobs = [column.name for column in table_schema(tables[0]).blobs]
    with ThreadPoolExecutor(THREADS) as pool:
        done = [
            pool.submit(read, path, list(columns), [name for name in blobs if name in columns])
            for table, columns in zip(tables, wanted)
            for bucket in paths(table).values()
            for path in bucket
        ]
        return sum(one.result() for one in done)


def checksum(batch: pa.RecordBatch) -> np.ndarray:
    """Cheap numbers that depend on which rows met: [3] int64, to be added up modulo 2^64."""
    item, purchase, click = (batch.column(name).to_numpy() for name in ("item_id", "purchase", "click"))
    return np.array([batch.num_rows, np.count_nonzero(purchase & click), (item * purchase).sum()], np.int64)


def history_sum(array: pa.Array) -> int:
    """Sum of all events of a batch's histories modulo 2^64, for every row again, in whatever form they came."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    is_blob = pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)
    values = numpy_from_blobs(array, "int64")[0] if is_blob else array.flatten().to_numpy()
    return int(values.view(np.uint64).sum())


def check_small(folder: Path, variants: Sequence[str]) -> None:
    """Raise RuntimeError unless the joins of the small tables have the same rows, sums and histories."""
    catalog, answers = local_catalog(folder), {}
    for variant in variants:
        total, events = np.zeros(3, np.int64), 0
        for batch in joined(catalog, variant, "warm"):
            total += checksum(batch)
            if HISTORY_ITEM_ID in batch.schema.names:
                events = (events + history_sum(batch.column(HISTORY_ITEM_ID))) % 2**64
        answers[variant] = (*(int(number) for number in total), events)
    if len(set(answers.values())) != 1:
        raise RuntimeError(f"the joins must give the same rows, found {answers}; nothing was timed")


def child(folder: Path, variant: str) -> str:
    catalog = local_catalog(folder)

    def run(namespace: str) -> list[int]:
        if variant == LIMIT:
            return [decode(catalog, namespace)]
        total = np.zeros(3, np.int64)
        for batch in joined(catalog, variant, namespace):
            total += checksum(batch)
        return [int(number) for number in total]

    run("warm")
    return measure(partial(run, "bench"))


def best(runs: Sequence[Measured]) -> Measured:
    """The least of each metric over the engines of one round."""
    return replace(runs[0], **{metric: min(getattr(one, metric) for one in runs) for metric in METRICS})


def run(folder: Path, num_rows: int, history: int, rounds: int) -> list[dict[str, Any]]:
    """Result rows. Raises RuntimeError where two variants do not agree on the result."""
    build(folder, num_rows, history)
    variants = [v for v in VARIANTS if not (history and v == "acero_full")]
    check_small(folder, [variant for variant in variants if variant != LIMIT])
    found = in_turns(
        "benchmarks.storage_join",
        variants,
        ["--folder", str(folder)],
        rounds=rounds,
        compare=False,
        arrow_pool="system",
    )
    answers = {tuple(one.answer) for variant, runs in found.items() for one in runs if variant != LIMIT}
    if len(answers) != 1:
        raise RuntimeError(f"the joins must give the same rows, found {answers}; nothing is reported")
    sizes = {
        "rows": num_rows,
        "joined_rows": answers.pop()[0],
        "history": history,
        "threads": THREADS,
        "buckets": NUM_BUCKETS,
        "fan_out": FAN_OUT,
        "missing": MISSING,
    }
    claim = f"bucket join, {num_rows / 1e6:g}M x {num_rows / 1e6:g}M rows, " + (
        f"histories of {history} events" if history else "scalars only"
    )
    rows: list[dict[str, Any]] = []
    for name, theirs, targets in (
        ("best_full", FULL, FULL_TARGETS),
        ("best_per_bucket", PER_BUCKET, PER_BUCKET_TARGETS),
    ):
        present = [variant for variant in theirs if variant in found]
        found_best = {**found, name: [best(runs) for runs in zip(*(found[variant] for variant in present))]}
        for ours in (OURS, OURS_COMPACT) if theirs is FULL else (OURS,):
            rows += ratio_rows(claim, found_best, ours=ours, theirs=[name], targets=targets, sizes=sizes)
        rows += ratio_rows(claim, found, ours=OURS, theirs=present, targets={}, sizes=sizes)
    for metric in ("cpu", "wall"):
        shares = [getattr(a, metric) / getattr(b, metric) for a, b in zip(found[LIMIT], found[OURS])]
        rows.append(
            {
                "claim": f"{claim}: {METRICS[metric]}, pyarrow decoding the same columns over the join",
                "variant": OURS,
                "value": statistics.median(shares),
                "unit": "of the limit",
                "target": None,
                "spread": [min(shares), max(shares)],
                "runs": rounds,
                "sizes": sizes,
                "load": load(found),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage_join", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of each table (default {ROWS:,})")
    parser.add_argument(
        "--history",
        type=int,
        nargs="*",
        default=list(HISTORIES),
        metavar="EVENTS",
        help="a case for each: events in a request's history, 0 for no such column (default 0 64)",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"processes per variant (default {ROUNDS}, with histories {ROUNDS_WITH_HISTORY})"
    )
    parser.add_argument("--quick", action="store_true", help="50,000 rows, one round; nothing is recorded")
    parser.add_argument("--keep", type=Path, help="leave the tables here, for another run with the same sizes")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(child(arguments.folder, arguments.measure))
        return 0
    num_rows = 50_000 if arguments.quick else arguments.rows
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="storage_join") as temporary:
        for history in arguments.history:
            folder = (arguments.keep or Path(temporary)) / f"{num_rows}_{history}"
            folder.mkdir(parents=True, exist_ok=True)
            rounds = 1 if arguments.quick else arguments.rounds or (ROUNDS_WITH_HISTORY if history else ROUNDS)
            rows += run(folder, num_rows, history, rounds)
    for row in rows:
        print(shown(row))
    if not arguments.quick and num_rows == ROWS and tuple(arguments.history) == HISTORIES:
        print(write_results("storage_join", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
