"""A stream of events in a lake of its own, for `benchmarks.sequences`, and what people run instead of a timeline."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyiceberg.catalog import Catalog

from reqdedup.logs.synthetic_events import (
    DAY_US,
    EVENT_COLUMNS,
    EVENT_TYPES,
    SyntheticEventsConfig,
    synthetic_events,
    synthetic_items,
)
from reqdedup.sequences.batch import advance
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events
from reqdedup.sequences.predicate import col
from reqdedup.sequences.tables import load_raw
from reqdedup.sequences.timeline import Timeline
from reqdedup.storage import open_catalog

N, BUCKETS, NUM_REQUESTS, PART_ROWS = 500, 8, 30_000, 16_384
LOG = EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS)
ENGAGED = SequenceDefinition(
    name="engaged",
    events=[EventType("click"), EventType("save"), EventType("view", col("duration_s") >= 10)],
    enrichments=[Enrichment("item", "lake.items", "item_id", ["category", "embedding"])],
    columns=[
        *("item_id", "event_id", "event_type", "surface", "duration_s"),
        *("event_ts", "arrival_ts", "category", "embedding"),
    ],
    last_n=N,
    owner="benchmarks",
)
NUMBERS = ["item_id", "category"]


class Lake:
    """The delivered events of a stream, and the timeline of all but its last `measured` days, made in two runs or
    every day."""

    def __init__(self, folder: Path, config: SyntheticEventsConfig, measured: int, *, every_day: bool = False) -> None:
        self.config = config
        uri = f"sqlite:///{folder}/catalog.db"
        self.catalog: Catalog = open_catalog(properties={"uri": uri, "warehouse": f"file://{folder}/tables"})
        self.catalog.create_namespace("lake")
        items = synthetic_items(config)
        self.catalog.create_table("lake.items", items.schema).append(items)
        self.items = pl.DataFrame(items)
        self.days = list(synthetic_events(config))[: config.num_days]
        for number, day in enumerate(self.days[:-measured]):
            self.deliver(number, day)
            if every_day or number in (config.num_days // 2, len(self.days) - measured - 1):
                advance(self.catalog, "lake", [ENGAGED], num_buckets=BUCKETS)

    def deliver(self, number: int, day: pa.Table) -> None:
        append_events(self.catalog, "lake", LOG, [day], source=f"day {number}")

    def raw_files(self) -> list[str]:
        """In the order of delivery: a folder is a day."""
        tasks = load_raw(self.catalog, "lake").scan().plan_files()
        return sorted(task.file.file_path.removeprefix("file://") for task in tasks)


class InMemory(Timeline):
    """A timeline whose numbers were read."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline.table, timeline.snapshot_id, timeline.state)
        names = ["arrival_ts", ENGAGED.rank_column, *NUMBERS]
        self._buckets = [timeline.read(bucket, names) for bucket in range(timeline.num_buckets)]

    def read(self, bucket: int, columns: Sequence[str]) -> pa.Table:
        return self._buckets[bucket]


def wanted() -> pl.Expr:
    is_read = (pl.col("event_type") == "view") & (pl.col("duration_s").fill_nan(None) >= 10).fill_null(False)
    return pl.col("event_type").is_in(["click", "save"]) | is_read


def rebuilt(lake: Lake, path: Path) -> pl.DataFrame:
    """All sequences from all raw events, the way of a daily job in Polars."""
    events = pl.scan_parquet(lake.raw_files()).filter(wanted()).unique("event_id", keep="first", maintain_order=True)
    return sequences(
        events.join(lake.items.lazy(), on="item_id", how="left", maintain_order="left"), path, "arrival_ts"
    )


def sequences(events: pl.LazyFrame, path: Path, order: str) -> pl.DataFrame:
    """Sequences of enriched events, written."""
    columns = list(ENGAGED.columns)
    found = events.sort("user_id", order, maintain_order=True).group_by("user_id", maintain_order=True)
    frame = found.agg(pl.col(name).tail(N) for name in columns).collect()
    frame.write_parquet(path, compression="zstd", compression_level=3)
    return frame


def requests_of(lake: Lake, num: int) -> pa.Table:
    rng = np.random.default_rng(7)
    events = pa.concat_tables(lake.days)
    last = int(events.column("arrival_ts").cast(pa.int64()).to_numpy().max())
    user = events.column("user_id").to_numpy()[rng.integers(0, len(events), num)]
    at = rng.integers(last - 5 * DAY_US, last, num)
    order = np.lexsort((at, user))
    return pa.table(
        {
            "user_id": user[order],
            "request_ts": pa.array(at[order]).cast(pa.timestamp("us", tz="UTC")),
            "request_id": np.arange(num),
        }
    )


def sizes(lake: Lake) -> dict[str, Any]:
    config = lake.config
    return {
        "users": config.num_users,
        "days": config.num_days,
        "last_n": N,
        "buckets": BUCKETS,
        "events": sum(map(len, lake.days)),
        "requests": NUM_REQUESTS,
    }


def memory() -> Iterator[dict[str, Any]]:
    """Resident memory that an advance over a day adds at most, of ten times the events over one times; 1 is flat.

    Parts have one size, some 16,000 events: fuller ones at ten times would say how full they are, no more.
    """
    added, num_events = dict[int, int](), dict[int, int]()
    for times in (1, 10):
        with tempfile.TemporaryDirectory(prefix="reqdedup-memory-") as folder:
            for step in ("prepare_memory", "added_memory"):
                code = f"from benchmarks import sequences_lake as lake; print(lake.{step}({folder!r}, {times}))"
                found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
                (num_events if step == "prepare_memory" else added)[times] = int(found.stdout)
    yield {
        "claim": "memory of advance",
        "variant": "ten times the events",
        "value": added[10] / added[1],
        "unit": "x the memory added at one time",
        "target": None,
        "bytes": added,
        "part_events": {times: num_events[times] / num_parts(num_events[times]) for times in num_events},
        "sizes": {"users": 20_000, "events": num_events[1], "part_rows": PART_ROWS},
    }


def num_parts(num_events: int) -> int:
    """Of a day in `DeliveredRange.parts`."""
    return BUCKETS * -(-num_events // (BUCKETS * PART_ROWS))


def prepare_memory(folder: str, times: int) -> int:
    """A lake with a day of events that waits."""
    lake = Lake(Path(folder), SyntheticEventsConfig(num_users=20_000 * times, num_items=100_000, num_days=2), 1)
    lake.deliver(1, lake.days[1])
    return len(lake.days[1])


def added_memory(folder: str, times: int) -> int:
    """Bytes by which an advance over that day raises this process's peak."""
    catalog = open_catalog(properties={"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/tables"})
    load_raw(catalog, "lake")
    before = _status("VmRSS")
    advance(catalog, "lake", [ENGAGED], part_rows=PART_ROWS)
    return (_status("VmHWM") - before) * 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
