"""What a process does that is killed at its n-th write, rename or commit: deliver events, advance, put, refresh; or
make versions of the timeline."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog

import reqdedup as rd
from reqdedup.sequences import intake
from reqdedup.sequences.batch import advance, backfill, compact_timeline, publish_timeline
from reqdedup.sequences.corrections import backfill_days, correct_enrichment
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events, number_events
from reqdedup.sequences.online import open_online
from reqdedup.sequences.published import publish_definitions, published_definitions
from reqdedup.sequences.retention import apply_retention
from reqdedup.sequences.tables import Delivered, delivered_of, load_raw
from reqdedup.sequences.timeline import open_timeline

LOG = EventLog(types=("view",), columns={})
ALL = SequenceDefinition(name="all", events=[EventType("view")], columns=["event_id"], last_n=1000, owner="tests")
OF_COUNTRY = SequenceDefinition(
    name="of_country", events=ALL.events, columns=["event_id", "country"], last_n=1000, owner="tests", retention="30d",
    enrichments=[Enrichment("user", "lake.users", "user_id", ["country"])],
)  # fmt: skip
NUM_EVENTS, NUM_USERS = 24, 3
START_US = 1_750_000_000_000_000
DAY_US = 86_400_000_000
NOW_US = START_US + 10**12


def delivered(first_id: int, count: int) -> pl.DataFrame:
    ids = pl.Series(range(first_id, first_id + count), dtype=pl.Int64)
    time = (START_US + ids).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame(
        {
            "event_id": ids,
            "user_id": ids % NUM_USERS,
            "event_type": ["view"] * count,
            "event_ts": time,
            "arrival_ts": time,
        }
    )


def numbered(position: int, count: int) -> pl.DataFrame:
    return number_events(LOG, delivered(position, count), Delivered(next_position=position), NOW_US).events


def run(catalog: Catalog, folder: Path) -> None:
    """Bring everything to the end, whatever an earlier run has done."""
    half = NUM_EVENTS // 2
    bad = delivered(0, 1).with_columns(user_id=pl.lit(None, pl.Int64))
    if "all" not in published_definitions(catalog, "lake"):
        publish_definitions(catalog, "lake", LOG, [ALL])
    for source, events in (("a", pl.concat([delivered(0, half), bad])), ("b", delivered(half, NUM_EVENTS - half))):
        append_events(catalog, "lake", LOG, [events.to_arrow()], source=source, now_us=NOW_US)
        if source == "a":
            advance(catalog, "lake", num_buckets=2)
    store = open_online(folder / "online", catalog, "lake")
    raw = load_raw(catalog, "lake")
    waiting = pl.from_arrow(raw.scan().to_arrow())
    assert isinstance(waiting, pl.DataFrame)
    for part in waiting.sort("position").iter_slices(5):
        store.put(part)
    advance(catalog, "lake", num_buckets=2)
    store.refresh()
    assert store.position == delivered_of(raw).next_position
    store.close()


def start_versions(catalog: Catalog) -> None:
    """Events of two months in a timeline, with a value that is wrong."""
    catalog.create_namespace("lake")
    users = pa.table({"user_id": range(NUM_USERS), "country": [1] * NUM_USERS})
    catalog.create_table("lake.users", users.schema).append(users)
    publish_definitions(catalog, "lake", LOG, [OF_COUNTRY])
    events = delivered(0, NUM_EVENTS)
    month = pl.duration(days=20) * (pl.col("event_id") // (NUM_EVENTS // 2))
    events = events.with_columns(pl.col("event_ts", "arrival_ts") + month)
    append_events(catalog, "lake", LOG, [events.to_arrow()], source="a", now_us=NOW_US + 40 * DAY_US)
    advance(catalog, "lake", num_buckets=2)
    catalog.load_table("lake.users").overwrite(users.set_column(1, "country", pa.array([2] * NUM_USERS)))


def run_versions(catalog: Catalog, folder: Path) -> None:
    """Backfills of some days, of an enrichment, of all and a retention, whatever of them an earlier run has done."""
    first = datetime.fromtimestamp(START_US / 1e6, UTC).date()
    makers = {
        1: lambda: backfill_days(catalog, "lake", first, first + timedelta(days=1)),
        2: lambda: correct_enrichment(catalog, "lake", "user"),
        3: lambda: backfill(catalog, "lake"),
    }
    while (version := open_timeline(catalog, "lake").state.version) in makers:
        makers[version]()
        publish_timeline(catalog, "lake")
    apply_retention(catalog, "lake", apply=True, now=datetime.fromtimestamp(START_US / 1e6, UTC) + timedelta(days=70))


class OpenLake(rd.Lake):
    """Over a catalog that is there already."""

    def __init__(self, catalog: Catalog) -> None:
        self._opened = catalog

    @property
    def catalog(self) -> Catalog:
        return self._opened


def start_deletion(catalog: Catalog, folder: Path) -> None:
    """Events in tables and in an online store, and some that only the store has."""
    run(catalog, folder)
    store = open_online(folder / "online", catalog, "lake")
    store.put(numbered(NUM_EVENTS + 1, 6))
    store.close()


def run_deletion(catalog: Catalog, folder: Path) -> None:
    """Compact and delete user 1, whatever of it an earlier run has done."""
    compact_timeline(catalog, "lake")
    OpenLake(catalog).delete_user(1, namespaces="lake", online=folder / "online", apply=True, erase=True)


def kill_at(step: int) -> None:
    """Count what reaches the disk or the catalog, and kill this process before the n-th of them."""
    counted = [0]

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            counted[0] += 1
            if counted[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counting

    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.io.pyarrow import PyArrowFileIO

    from reqdedup.sequences import online, speed
    from reqdedup.storage.iceberg.row_files import RowFiles
    from reqdedup.storage.maintenance import row_deletion

    for owner, name in (
        (SqlCatalog, "commit_table"),
        (SqlCatalog, "create_table"),
        (PyArrowFileIO, "delete"),
        (RowFiles, "write"),
        (row_deletion, "files_of_rows"),
        (RowFiles, "derived_path"),
        (Path, "replace"),
        (os, "fsync"),
        (online, "build_view"),
        (online.shutil, "rmtree"),
        (speed.WriteAheadFile, "keep"),
        (speed.WriteAheadFile, "append"),
        (intake, "_write_rejected"),
        (intake, "_delete_rejected"),
    ):
        setattr(owner, name, before(getattr(owner, name)))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    kill_at(int(sys.argv[2]))
    scenario = {one.__name__: one for one in (run, run_versions, run_deletion)}[sys.argv[3]]
    lake = load_catalog("t", type="sql", uri=f"sqlite:///{place}/catalog.db", warehouse=f"file://{place}/lake")
    scenario(lake, place)
