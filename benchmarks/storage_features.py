"""What a request-level feature costs on disk against its values alone, with its keys and by position; and to read.

    python -m benchmarks.storage_features [--requests 1000000]

Every case backfills one feature for all requests of a table of `--requests` requests, 5 per user, with ids in order (as
a counter gives them) or hashed (as strings become), checks that the join hands every request its own value, and reports
the bytes of the new data files over the bytes of the values in the same codec. `entropy` is what no store of (user_id,
request_id, value) can go below, over the same values. Then what an operation on one user or on all of them writes, and
the CPU of a join of the main table with the feature, in turns, median of the rounds. Bytes do not depend on the
machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from benchmarks.record import write_results
from reqdedup.arrays.hashing import mix
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage import (
    Layout,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    open_catalog,
    promote,
    write,
)
from reqdedup.storage.features.values import feature_array

TARGET = 1.2
REQUESTS, REQUESTS_PER_USER, NUM_BUCKETS, ROUNDS = 1_000_000, 5, 16, 3
FORMS = {"stored keys": False, "by position": True}

SCHEMA = EngagementSchema(
    tuple(
        Column(name=name, dtype=dtype, level=level)
        for name, dtype, level in (
            ("user_id", "int64", Level.KEY),
            ("request_id", "int64", Level.KEY),
            ("item_id", "int64", Level.KEY),
            ("request_ts", "timestamp", Level.REQUEST),
            ("click", "int32", Level.LABEL),
        )
    )
)


def uniform(requests: pa.RecordBatch, *, salt: int = 0) -> np.ndarray:
    """A number in [0, 1) that only this request has."""
    ids = requests["request_id"].to_numpy().view(np.uint64)
    return (mix(mix(ids) ^ np.uint64(salt)) >> np.uint64(11)) / 2.0**53


def flag(requests: pa.RecordBatch) -> np.ndarray:
    return uniform(requests) < 0.5


def count(requests: pa.RecordBatch) -> np.ndarray:
    """A skewed count, as of recent events: 4.1 bits of information."""
    return np.floor(np.log1p(-uniform(requests)) / np.log(0.85)).astype(np.int32)


def number(requests: pa.RecordBatch) -> np.ndarray:
    return uniform(requests).astype(np.float32)


def embedding(requests: pa.RecordBatch) -> pa.Array:
    values = np.stack([uniform(requests, salt=salt) for salt in range(64)], axis=1).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 64)


FEATURES: dict[str, tuple[Column, Callable[[pa.RecordBatch], Any]]] = {
    "flag": (Column(name="flag", dtype="bool", level=Level.REQUEST), flag),
    "count": (Column(name="count", dtype="int32", level=Level.REQUEST), count),
    "number": (Column(name="number", dtype="float32", level=Level.REQUEST), number),
    "embedding": (
        Column(name="embedding", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=64),
        embedding,
    ),
}


def batches(num_requests: int, *, hashed: bool, block: int = 2**17) -> Iterator[pa.RecordBatch]:
    """Requests in the order of their time, two rows each; users at random."""
    rng = np.random.default_rng(0)
    for start in range(0, num_requests, block):
        request = np.arange(start, min(start + block, num_requests))
        user = rng.integers(0, max(num_requests // REQUESTS_PER_USER, 1), len(request))
        if hashed:
            request, user = (mix(ids.astype(np.uint64)).view(np.int64) for ids in (request, user))
        columns = [np.repeat(column, 2) for column in (user, request, np.arange(len(request)), request)]
        columns[2] = np.arange(2 * len(request))
        times = pa.array(np.repeat(np.arange(start, start + len(request)), 2)).cast(pa.timestamp("us", tz="UTC"))
        arrays = [*map(pa.array, columns[:3]), times, pa.array(np.zeros(2 * len(request), np.int32))]
        fields = [pa.field(column.name, array.type, nullable=False) for column, array in zip(SCHEMA.columns, arrays)]
        yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def key_entropy_bytes(num_requests: int, *, hashed: bool) -> float:
    """Bytes without which nobody can tell whose value is whose: the users of the requests, and ids
    nobody can predict."""

    def log2_factorial(n: int) -> float:
        return math.lgamma(n + 1) / math.log(2)

    num_users = num_requests // REQUESTS_PER_USER
    bits = log2_factorial(num_requests) - num_users * log2_factorial(REQUESTS_PER_USER)
    if hashed:
        bits += 64 * (num_requests + num_users) - log2_factorial(num_requests) - log2_factorial(num_users)
    return bits / 8


def right(main: Table, side: Table, compute: Callable[[pa.RecordBatch], Any], column: Column) -> bool:
    """Whether the join hands every row the value of its request."""
    joined = bucket_join(main, side)
    for batch in joined.batches(["request_id", column.name]):
        found, rows = batch[column.name], batch
        if column.is_blob:  # one row per distinct value is enough
            rows = batch.take(pa.array(np.unique(found.indices.to_numpy(), return_index=True)[1]))
            found = rows[column.name].dictionary_decode()
        if not found.equals(column_array(compute(rows), column, rows.num_rows)):
            return False
    return joined.counts.missing_rows == joined.counts.unused_right_keys == 0


def column_array(values: Any, column: Column, num_rows: int) -> pa.Array:
    array = feature_array(values, column, num_rows)
    return array.dictionary_decode() if column.is_blob else array


def join_seconds(main: Table, side: Table, column: Column) -> float:
    started = time.process_time()
    for _ in bucket_join(main, side).batches(["user_id", "request_id", "item_id", "click", column.name]):
        pass
    return time.process_time() - started


def measure(catalog: Catalog, num_requests: int, *, hashed: bool) -> Iterator[dict[str, Any]]:
    ids = "hashed ids" if hashed else "ids in order"
    sizes = {"requests": num_requests, "requests_per_user": REQUESTS_PER_USER, "buckets": NUM_BUCKETS, "ids": ids}
    main = create_table(catalog, f"lake.main_{int(hashed)}", SCHEMA, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    write(main, batches(num_requests, hashed=hashed))
    sides: dict[tuple[str, str], Table] = {}
    for name, (column, compute) in FEATURES.items():
        for form, by_position in FORMS.items():
            identifier = f"lake.{name}_{int(hashed)}_{int(by_position)}"
            side = create_feature_table(catalog, identifier, main, [column], by_position=by_position)
            report = add_request_feature(main, side, compute, inputs=[])
            assert right(main, side, compute, column), (name, form)
            sides[name, form] = side
            yield {
                "claim": f"{name} of every request, {ids}",
                "variant": form,
                "value": report.ratio_to_minimum,
                "unit": "bytes written / bytes of the values",
                "target": TARGET,
                "bytes_per_request": report.bytes / num_requests,
                "minimum_per_request": report.minimum_bytes / num_requests,
                "limit": 1.0
                if by_position
                else 1 + key_entropy_bytes(num_requests, hashed=hashed) / report.minimum_bytes,
                "sizes": sizes,
            }
    column, compute = FEATURES["count"]
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(ROUNDS):
        for form in FORMS:
            times[form].append(join_seconds(main, sides["count", form], column))
    for form in FORMS:
        yield {
            "claim": f"join with a count, {ids}",
            "variant": form,
            "value": statistics.median(times[form]) / statistics.median(times["stored keys"]),
            "unit": "CPU / CPU with stored keys",
            "target": None,
            "spread": [min(times[form]), max(times[form])],
            "runs": ROUNDS,
            "sizes": sizes,
        }
        user = next(iter(bucket_join(main, sides["count", form]).batches(["user_id"])))["user_id"][0].as_py()
        report = add_request_feature(main, sides["count", form], compute, inputs=[], users=np.array([user]))
        yield {
            "claim": f"one user's count, {ids}",
            "variant": form,
            "value": report.files,
            "unit": "files written",
            "target": 1,
            "sizes": sizes,
        }
    promoted = promote(
        main, [sides["count", "by position"], sides["number", "stored keys"], sides["embedding", "by position"]]
    )
    yield {
        "claim": f"promote count, number and embedding, {ids}",
        "variant": "one pass",
        "value": promoted.bytes / (promoted.old_bytes + promoted.added_bytes),
        "unit": "bytes written / bytes of old and new columns",
        "target": None,
        "seconds": promoted.seconds,
        "sizes": sizes,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage_features", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"the results hold a run of {REQUESTS:,}")
    arguments = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        catalog = open_catalog(
            "features", {"type": "sql", "uri": f"sqlite:///{path}/catalog.db", "warehouse": f"file://{path}/lake"}
        )
        for hashed in (False, True):
            for row in measure(catalog, arguments.requests, hashed=hashed):
                rows.append(row)
                limit = f"  limit {row['limit']:.2f}" if "limit" in row else ""
                target = f"  (target {row['target']})" if row["target"] is not None else ""
                print(
                    f"{row['claim']:<48} {row['variant']:<12} {row['value']:>8.3f} {row['unit']}{target}{limit}",
                    flush=True,
                )
    if arguments.requests == parser.get_default("requests"):
        print(write_results("storage_features", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
