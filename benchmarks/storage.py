"""All claims about storage: `make bench-storage`, about 45 minutes on two free cores and 20 GB of temporary disk.

    python -m benchmarks.storage [--only layouts write] [--quick]

layouts      bytes of every layout against the shuffled control and the store-once limit       12 minutes
features     bytes of one request-level feature against the bytes of its values                 5
read         CPU and memory of reading one sequence column                                      4
join         bucket join against DuckDB, Polars and Acero                                       8
write        CPU and memory of writing BY_REQUEST against pyiceberg's `append`                 10
maintenance  what one user's change rewrites, what compaction costs                             3
audit        what `reqdedup audit` predicts against what is written                             2
news         bytes and CPU on a log of short histories against Polars, DuckDB and pyiceberg     5
ids          dense ids of text items against hashed ones                                        1

Each is a module of its own, `benchmarks.storage_<name>`, with more options. Ratios are within one run; every part
passes its gates before it reports, and a part that is measured in full replaces
`benchmarks/results/storage_<name>.jsonl`. `--quick` takes tiny logs and records nothing: it shows that everything runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import (
    storage_audit,
    storage_features,
    storage_ids,
    storage_join,
    storage_layouts,
    storage_maintenance,
    storage_news,
    storage_read,
    storage_write,
)
from benchmarks.own_process import shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog
from reqdedup.logs import SyntheticLogConfig

Rows = Iterator[dict[str, Any]]


def tiny(log: SyntheticLogConfig) -> SyntheticLogConfig:
    """The log with a few short requests."""
    return replace(
        log, num_users=6, mean_requests_per_user=1, mean_fan_out=6, max_fan_out=9, history_scale=1 / 150, max_history=64
    )


def layouts(folder: Path, *, quick: bool) -> Rows:
    for case in storage_layouts.CASES:
        (folder / case.name).mkdir()
        log = tiny(case.log) if quick else case.log
        yield from storage_layouts.measure(replace(case, log=log), folder / case.name)


def features(folder: Path, *, quick: bool) -> Rows:
    for hashed in (False, True):
        catalog = local_catalog(folder / f"hashed_{hashed}")
        yield from storage_features.measure(catalog, 500 if quick else storage_features.REQUESTS, hashed=hashed)


def read(folder: Path, *, quick: bool) -> Rows:
    users, rounds = (2, 1) if quick else (storage_read.USERS, storage_read.ROUNDS)
    yield from storage_read.run(folder, users=users, rounds=rounds)


def join(folder: Path, *, quick: bool) -> Rows:
    rows, rounds = (1_000, 1) if quick else (storage_join.ROWS, storage_join.ROUNDS)
    for history in storage_join.HISTORIES:
        (folder / str(history)).mkdir()
        yield from storage_join.run(folder / str(history), rows, history, rounds)


def write(folder: Path, *, quick: bool) -> Rows:
    rounds = 1 if quick else storage_write.ROUNDS
    for name, log in storage_write.CASES.items():
        yield from storage_write.run(folder / name, name, tiny(log) if quick else log, rounds=rounds)
    log = tiny(storage_write.MEMORY) if quick else storage_write.MEMORY
    yield from storage_write.run_memory(folder / "memory", log, rounds=rounds)


def maintenance(folder: Path, *, quick: bool) -> Rows:
    log = storage_maintenance.log_of(60 if quick else storage_maintenance.USERS)
    yield from storage_maintenance.one_user(local_catalog(folder / "one_user"), log)
    rounds = 1 if quick else storage_maintenance.ROUNDS
    yield from storage_maintenance.compaction(folder, log, rounds=rounds)


def audit(folder: Path, *, quick: bool) -> Rows:
    for name, (log, sample_bytes) in storage_audit.CASES.items():
        logs = {"num_logs": 1} if quick else {}
        yield from storage_audit.measure(folder, name, tiny(log) if quick else log, sample_bytes, **logs)


def news(folder: Path, *, quick: bool) -> Rows:
    for rows in (1_000,) if quick else storage_news.ROWS:
        yield from storage_news.run(folder / str(rows), rows, rounds=1 if quick else storage_news.ROUNDS)


def ids(folder: Path, *, quick: bool) -> Rows:
    rows, keys = (1_000, 500) if quick else (storage_ids.ROWS, storage_ids.KEYS)
    yield from storage_ids.run(folder, rows, keys)


PARTS: dict[str, Callable[..., Rows]] = {
    "layouts": layouts,
    "features": features,
    "read": read,
    "join": join,
    "write": write,
    "maintenance": maintenance,
    "audit": audit,
    "news": news,
    "ids": ids,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="some of the parts")
    parser.add_argument("--quick", action="store_true", help="tiny logs, one round; nothing is recorded")
    arguments = parser.parse_args(argv)
    for name in arguments.only:
        started, rows = time.monotonic(), []
        with tempfile.TemporaryDirectory(prefix=f"storage_{name}") as folder:
            for row in PARTS[name](Path(folder), quick=arguments.quick):
                rows.append(row)
                print(shown(row), flush=True)
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr, flush=True)
        if not arguments.quick:
            print(write_results(f"storage_{name}", rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
