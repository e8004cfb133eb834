"""What one user's deletion or new feature writes, and what compaction costs against one write of the same rows.

    python -m benchmarks.storage_maintenance [--users 5000]

One user: every file that comes or goes must belong to the user's bucket, in the main table and in feature tables with
stored keys and by position; bytes are those of new files over those of the table. Gates: no row of the user is left,
the other rows are all there; the user alone has the new value.

Compaction: a log that came in seven appends, each with some requests of every user, against writing its rows at once
from Arrow streams. Each is a process of its own, in turns; compaction also reads the old files and checksums all rows
twice.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from benchmarks.own_process import in_turns, measure, ratio_rows, shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog, read_stream, write_stream
from reqdedup.dedup.rows import take_rows
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.schema import Column, Level
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    write,
)
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.maintenance import compact, delete_user
from reqdedup.storage.measure.checks import content_checksum

MODULE = "benchmarks.storage_maintenance"
NUM_BUCKETS, NUM_APPENDS, USERS, ROUNDS = 16, 7, 5_000, 3
VARIANTS = ("one_write", "compact")
FEATURE = Column(name="value", dtype="int32", level=Level.REQUEST)
FORMS = {"stored keys": False, "by position": True}

Files = dict[str, tuple[int, int]]
"""Bucket and bytes by path."""


def log_of(users: int) -> SyntheticLogConfig:
    """Histories of up to 256 events, F about 40."""
    return SyntheticLogConfig(
        num_users=users,
        mean_requests_per_user=3,
        mean_fan_out=40,
        max_fan_out=200,
        history_scale=1 / 60,
        max_history=256,
    )


def files_of(table: Table) -> Files:
    return {
        task.file.file_path: (task.file.partition[0], task.file.file_size_in_bytes)
        for task in table.scan().plan_files()
    }


def constant(value: int, requests: pa.RecordBatch) -> np.ndarray:
    return np.full(requests.num_rows, value, np.int32)


def rewritten(
    claim: str, variant: str, before: Files, after: Files, user: int, sizes: dict[str, Any]
) -> dict[str, Any]:
    """The result row of one operation. Raises ValueError where a file of another bucket came or went."""
    new = {path: file for path, file in after.items() if path not in before}
    gone = {path: file for path, file in before.items() if path not in after}
    bucket = int(buckets_of(np.array([user]), NUM_BUCKETS)[0])
    buckets = {file[0] for file in (*new.values(), *gone.values())}
    if buckets != {bucket}:
        raise ValueError(
            f"{claim}, {variant}: other files in bucket {bucket} alone required, found them in {sorted(buckets)}"
        )
    num_bytes, table_bytes = sum(size for _, size in new.values()), sum(size for _, size in before.values())
    return {
        "claim": f"{claim}: files rewritten",
        "variant": variant,
        "value": num_bytes / table_bytes,
        "unit": "bytes rewritten / bytes of the table",
        "target": None,
        "files": len(gone),
        "table_files": len(before),
        "other_buckets": 0,
        "bytes": num_bytes,
        "table_bytes": table_bytes,
        "limit": sum(size for owner, size in before.values() if owner == bucket) / table_bytes,
        "sizes": sizes,
    }


def one_user(catalog: Catalog, log: SyntheticLogConfig) -> Iterator[dict[str, Any]]:
    """Result rows of one user's new feature and of the user's deletion, from all tables in one call."""
    schema = synthetic_schema(log)
    main = create_table(catalog, "bench.main", schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    report = write(main, synthesize(log))
    sizes = {"rows": report.rows, "requests": report.requests, "users": report.users, "buckets": NUM_BUCKETS}
    sides = {}
    for form, by_position in FORMS.items():
        name = f"bench.side_{int(by_position)}"
        sides[form] = create_feature_table(catalog, name, main, [FEATURE], by_position=by_position)
        add_request_feature(main, sides[form], partial(constant, 0), inputs=[])
    user = int(next(TableSource(main).batches(["user_id"]))["user_id"][0].as_py())
    for form, side in sides.items():
        before, main_before = files_of(side), files_of(main)
        add_request_feature(main, side, partial(constant, 1), inputs=[], users=np.array([user]))
        if files_of(main) != main_before:
            raise ValueError("a feature of one user: the main table untouched required, found other files")
        for batch in bucket_join(main, side).batches(["user_id", FEATURE.name]):
            if not np.array_equal(batch[FEATURE.name].to_numpy() == 1, batch["user_id"].to_numpy() == user):
                raise ValueError(f"a feature of one user, {form}: the new value on their rows alone required")
        yield rewritten("one user's feature changed", form, before, files_of(side), user, sizes)
    tables = {"main table": main, **sides}
    before_all = {name: files_of(table) for name, table in tables.items()}
    deleted = delete_user(list(tables.values()), user)[0].rows
    left = 0
    for batch in TableSource(main.refresh()).batches(["user_id"]):
        if np.any(batch["user_id"].to_numpy() == user):
            raise ValueError(f"delete_user: no row of user {user} required, found some; nothing is reported")
        left += batch.num_rows
    if left + deleted != report.rows:
        raise ValueError(f"delete_user: {report.rows - deleted} rows required, found {left}; nothing is reported")
    for name, table in tables.items():
        yield rewritten("one user deleted", name, before_all[name], files_of(table.refresh()), user, sizes)


def build_days(folder: Path, log: SyntheticLogConfig) -> None:
    """The log in NUM_APPENDS parts, each with a share of every user's requests, as Arrow streams."""
    folder.mkdir(parents=True, exist_ok=True)
    for day in range(NUM_APPENDS):
        write_stream(folder / f"day_{day}.arrows", _day(log, day))


def _day(log: SyntheticLogConfig, day: int) -> Iterator[pa.RecordBatch]:
    for batch in synthesize(log):
        rows = np.flatnonzero(batch["request_id"].to_numpy() % NUM_APPENDS == day)
        if len(rows):
            yield take_rows(batch, rows)


def child(folder: Path, variant: str) -> str:
    for name in ("warm", "bench"):
        days = [folder / name / f"day_{day}.arrows" for day in range(NUM_APPENDS)]
        shutil.rmtree(work := folder / f"{name}_{variant}", ignore_errors=True)
        table = create_table(
            local_catalog(work), "bench.log", synthetic_schema(log_of(1)), Layout.BY_REQUEST, num_buckets=NUM_BUCKETS
        )
        run: Callable[[], object] = partial(write, table, (batch for day in days for batch in read_stream(day)))
        if variant == "compact":
            for day in days:
                write(table, read_stream(day), mode="append")
            run = partial(compact, table)
        if name == "warm":
            run()
    return measure(run, check=lambda: str(content_checksum(TableSource(table.refresh()))))


def compaction(folder: Path, log: SyntheticLogConfig, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Result rows: what compaction costs over one write of the same rows."""
    build_days(folder / "warm", log_of(20))
    build_days(folder / "bench", log)
    found = in_turns(MODULE, VARIANTS, ["--folder", str(folder)], rounds=rounds)
    table = local_catalog(folder / "bench_one_write").load_table("bench.log")
    sizes = {
        "rows": sum(task.file.record_count for task in table.scan().plan_files()),
        "users": log.num_users,
        "appends": NUM_APPENDS,
        "buckets": NUM_BUCKETS,
        "bytes": sum(size for _, size in files_of(table).values()),
    }
    claim = "compact a log of several appends, against one write"
    for row in ratio_rows(claim, found, ours="one_write", theirs=["compact"], targets={}, sizes=sizes):
        metric = row["unit"].removeprefix("x less ")
        yield row | {
            "variant": "compact",
            "unit": f"x the {metric} of one write",
            "ours": row["theirs"],
            "theirs": row["ours"],
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage_maintenance", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--users", type=int, default=USERS, help=f"of the log; the results hold a run of {USERS:,}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"processes per variant (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="60 users, one round; nothing is recorded")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(child(arguments.folder, arguments.measure))
        return 0
    users, rounds = (60, 1) if arguments.quick else (arguments.users, arguments.rounds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="storage_maintenance") as temporary:
        folder = Path(temporary)
        for found in (
            one_user(local_catalog(folder / "one_user"), log_of(users)),
            compaction(folder, log_of(users), rounds=rounds),
        ):
            for row in found:
                rows.append(row)
                print(shown(row), flush=True)
    if (users, rounds) == (USERS, ROUNDS):
        print(write_results("storage_maintenance", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
