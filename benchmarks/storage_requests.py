"""Requests to the store and to the catalog, and seconds, of each operation at 50 ms of latency.

    python -m benchmarks.storage_requests [--latency-ms 50] [--record]

Two catalogs on a SeaweedFS of its own, on loopback: Iceberg REST, and SQLite with its metadata files on S3 too. Every
request passes a relay that counts it and holds it back. The table has 4 buckets, one file each per write; an append
brings 4 more. Gate: what is read has the rows that were written. Counts are the same on every machine; seconds are
mostly latency.

`target` is the goal, in requests: what the operation cannot do without, each file of a read asked for its size and
fetched once, each file of a write put once and read back.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from benchmarks.counting_proxy import CountingProxy
from benchmarks.record import write_results
from reqdedup.audit import audit_table
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, TableSource, compact, create_table, open_catalog, write
from tests.servers.seaweedfs import BUCKET, SeaweedFS, start_seaweedfs

T = TypeVar("T")
LOG = SyntheticLogConfig(
    seed=1,
    num_users=40,
    num_items=2_000,
    mean_requests_per_user=2.0,
    max_requests_per_user=6,
    mean_fan_out=6.0,
    max_fan_out=20,
    median_history=24.0,
    p90_history=60.0,
    max_history=64,
    users_per_block=16,
)
NUM_BUCKETS = 4
GOALS = {
    "create": {"rest": 3, "sql": 5},
    "write": {"rest": 21, "sql": 26},
    "append": {"rest": 25, "sql": 30},
    "load": {"rest": 1, "sql": 2},
    "read all": {"rest": 22, "sql": 22},
    "audit": {"rest": 25, "sql": 25},
    "commit a property": {"rest": 1, "sql": 5},
    "compact": {"rest": 80, "sql": 100},
}
"""Requests that each operation may take, by catalog."""


def rows(latency_s: float) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        seaweedfs = start_seaweedfs(Path(folder))
        try:
            with (
                CountingProxy(_address(seaweedfs.s3_endpoint)) as s3,
                CountingProxy(_address(seaweedfs.rest_uri)) as rest,
            ):
                for kind in ("rest", "sql"):
                    yield from _operations(
                        kind, _properties(kind, seaweedfs, s3, rest, Path(folder)), s3, rest, latency_s
                    )
        finally:
            seaweedfs.server.stop()


def _operations(
    kind: str, properties: dict[str, str], s3: CountingProxy, rest: CountingProxy, latency_s: float
) -> Iterator[dict[str, Any]]:
    measured: list[dict[str, Any]] = []

    def count(claim: str, operation: Callable[[], T]) -> T:
        s3.requests.clear()
        rest.requests.clear()
        s3.latency_s = rest.latency_s = latency_s
        started = time.monotonic()
        result = operation()
        seconds = time.monotonic() - started
        s3.latency_s = rest.latency_s = 0.0
        to_catalog = kind == "rest" and len(rest.requests)
        methods = Counter(f"S3 {method}" for method, _ in s3.requests)
        measured.append(
            {
                "claim": f"requests of {claim}",
                "variant": kind,
                "value": len(s3.requests) + to_catalog,
                "unit": "requests",
                "target": GOALS[claim][kind],
                "methods": dict(methods) | {"REST": to_catalog},
                "seconds": seconds,
                "sizes": {"buckets": NUM_BUCKETS, "latency_ms": 1000 * latency_s},
            }
        )
        return result

    catalog, schema, batches = open_catalog("requests", properties), synthetic_schema(LOG), list(synthesize(LOG))
    catalog.create_namespace(kind)
    name, num_rows = f"{kind}.t", sum(batch.num_rows for batch in batches)
    table = count("create", lambda: create_table(catalog, name, schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS))
    count("write", lambda: write(table, batches))
    count("append", lambda: write(table, batches, mode="append"))
    table = count("load", lambda: catalog.load_table(name))
    found = count("read all", lambda: sum(batch.num_rows for batch in TableSource(table).batches()))
    if found != 2 * num_rows:
        raise AssertionError(f"{2 * num_rows} rows required, found {found}")
    count("audit", lambda: audit_table(catalog.load_table(name), request_key="request_id", user_key="user_id"))
    count("commit a property", lambda: table.transaction().set_properties({"owner": "me"}).commit_transaction())
    count("compact", lambda: compact(catalog.load_table(name), force=True))
    yield from measured


def _properties(
    kind: str, seaweedfs: SeaweedFS, s3: CountingProxy, rest: CountingProxy, folder: Path
) -> dict[str, str]:
    if kind == "rest":
        tokens = f"{rest.uri}/v1/oauth/tokens"
        return {**seaweedfs.rest_properties, "uri": rest.uri, "oauth2-server-uri": tokens, "s3.endpoint": s3.uri}
    place = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"s3://{BUCKET}/tables"}
    return {**seaweedfs.s3_properties, "s3.endpoint": s3.uri, **place}


def _address(uri: str) -> tuple[str, int]:
    found = urlparse(uri)
    return str(found.hostname), int(found.port or 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--record", action="store_true", help="replace benchmarks/results/storage_requests.jsonl")
    arguments = parser.parse_args()
    measured = list(rows(arguments.latency_ms / 1000))
    for row in measured:
        shown = ", ".join(f"{name} {count}" for name, count in row["methods"].items() if count)
        goal = f"goal {row['target']}"
        print(f"{row['claim']:32} {row['variant']:5} {row['value']:4} ({goal:8}) {row['seconds']:6.2f} s  {shown}")
    if arguments.record:
        print(write_results("storage_requests", measured))


if __name__ == "__main__":
    main()
