"""A lake with the tables that enrichments look up, and events for it, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog

from reqdedup.sequences.intake import append_events
from tests.sequences.event_streams import LOG, NOW_US, arrow_of, lookups


def lake(folder: Path) -> Catalog:
    catalog = load_catalog("t", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")
    catalog.create_namespace("lake")
    for name, table in lookups().items():
        catalog.create_table(name, table.schema).append(table)
    return catalog


def event(event_id: int, arrival_us: int, **other: Any) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "user_id": 7,
        "item_id": 1,
        "event_type": "click",
        "event_ts": arrival_us,
        "arrival_ts": arrival_us,
        "surface": 1,
        "duration_s": 12.0,
        "query": None,
        **other,
    }


def deliver(catalog: Catalog, events: list[dict[str, Any]], source: str = "stream") -> None:
    append_events(catalog, "lake", LOG, [arrow_of(events)], source=source, now_us=NOW_US)


def requests_at(pairs: list[tuple[int, int]]) -> pa.Table:
    times = pa.array([at for _, at in pairs], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({"user_id": pa.array([user for user, _ in pairs], pa.int64()), "request_ts": times})
