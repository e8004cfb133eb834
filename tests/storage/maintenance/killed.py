"""Operations to be killed, and the process that kills itself at one of their steps. No test: see `test_killed`.

A step is a call across the library's border: a spill flushed, a file opened, closed or deleted, a commit sent or answered.
The process counts them and ends itself with SIGKILL before the one that it was told.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.storage import (
    Layout,
    add_request_feature,
    create_feature_table,
    create_table,
    promote,
    write,
)
from reqdedup.storage.iceberg.datafile import DataFileWriter
from reqdedup.storage.maintenance import compact, delete_user, expire_snapshots, rebucket, sweep_orphans
from reqdedup.storage.write import spill as spill_module
from tests.storage.feature_tables import COUNT, of_request
from tests.storage.small_log import log_schema, make_log, to_batches

LOG, MORE = make_log(num_users=6, seed=1), make_log(num_users=4, seed=2)
GONE = LOG[0]["user_id"]
NOW = timedelta(0)
STEPS: list[tuple[type, str]] = [
    (spill_module._SpillFile, "_flush"),
    (spill_module._SpillFile, "finish"),
    (PyArrowFile, "create"),
    (DataFileWriter, "close"),
    (PyArrowFileIO, "delete"),
    (SqlCatalog, "create_table"),
    (SqlCatalog, "commit_table"),
]


def open_lake(folder: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


def new_table(folder: Path, layout: Layout = Layout.BY_REQUEST):
    return create_table(open_lake(folder), "test.main", log_schema(), layout, num_buckets=2)


def main_table(folder: Path):
    return open_lake(folder).load_table("test.main")


def spill_dir(folder: Path) -> Path:
    path = folder / "spill"
    path.mkdir(exist_ok=True)
    return path


def set_up_one(folder: Path) -> None:
    write(new_table(folder), to_batches(LOG))


def set_up_two_appends(folder: Path) -> None:
    table = new_table(folder)
    write(table, to_batches(LOG))
    write(table, to_batches(MORE), mode="append")


def set_up_shuffled(folder: Path) -> None:
    write(new_table(folder, Layout.SHUFFLED), to_batches(LOG))


def set_up_orphans(folder: Path) -> None:
    set_up_two_appends(folder)
    for number in range(3):
        (folder / "lake" / "test" / "main" / "data" / f"lost-{number}.parquet").write_bytes(b"lost")


def set_up_features(folder: Path) -> None:
    set_up_one(folder)
    create_feature_table(open_lake(folder), "test.side", main_table(folder), [COUNT])


def set_up_computed(folder: Path) -> None:
    set_up_features(folder)
    run_backfill(folder)


def set_up_theirs(folder: Path) -> None:
    open_lake(folder).create_namespace("test")
    batches = to_batches(LOG)
    names = ["user_id", "request_id", "item_id", "request_ts", "device", "item_price"]
    rows = pa.Table.from_batches([batch.select(names) for batch in batches])
    (folder / "theirs").mkdir()
    order = pa.array(np.random.default_rng(0).permutation(len(rows)))
    pq.write_table(rows.take(order), folder / "theirs" / "all.parquet")


def run_write(folder: Path) -> None:
    write(main_table(folder), to_batches(MORE), spill_dir=spill_dir(folder))


def run_append(folder: Path) -> None:
    write(main_table(folder), to_batches(MORE), mode="append", spill_dir=spill_dir(folder))


def run_compact(folder: Path) -> None:
    compact(main_table(folder), spill_dir=spill_dir(folder))


def run_delete(folder: Path) -> None:
    delete_user(main_table(folder), GONE)


def run_rebucket(folder: Path) -> None:
    rebucket(main_table(folder), 3, spill_dir=spill_dir(folder))


def run_expire(folder: Path) -> None:
    expire_snapshots(main_table(folder), older_than=NOW)


def run_sweep(folder: Path) -> None:
    sweep_orphans(main_table(folder), older_than=NOW, dry_run=False)


def run_backfill(folder: Path) -> None:
    add_request_feature(main_table(folder), open_lake(folder).load_table("test.side"), of_request)


def run_promote(folder: Path) -> None:
    promote(main_table(folder), [open_lake(folder).load_table("test.side")], spill_dir=spill_dir(folder))


def run_convert(folder: Path) -> None:
    mapping = ColumnMapping(user="user_id", request="request_id", item="item_id", time="request_ts")
    convert_table(
        folder / "theirs", open_lake(folder), "test.main", mapping, num_buckets=2, spill_dir=spill_dir(folder)
    )


OPERATIONS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "write": (set_up_one, run_write),
    "append": (set_up_one, run_append),
    "compact": (set_up_two_appends, run_compact),
    "delete": (set_up_one, run_delete),
    "delete from shuffled": (set_up_shuffled, run_delete),
    "rebucket": (set_up_one, run_rebucket),
    "expire": (set_up_two_appends, run_expire),
    "sweep": (set_up_orphans, run_sweep),
    "backfill": (set_up_features, run_backfill),
    "promote": (set_up_computed, run_promote),
    "convert": (set_up_theirs, run_convert),
}


def child(name: str, folder: str, kill_at: int) -> None:
    """Run an operation and end before step `kill_at`; -1 runs it to its end and writes how many steps it took."""
    count = 0

    def step() -> None:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    for owner, method in STEPS:
        setattr(owner, method, _stepping(getattr(owner, method), step))
    _, run = OPERATIONS[name]
    run(Path(folder))
    if kill_at < 0:
        Path(folder, "steps").write_text(str(count))


def _stepping(method, step):
    def stepped(*args, **options):
        step()
        result = method(*args, **options)
        step()
        return result

    return stepped
