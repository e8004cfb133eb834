"""After `delete_user` nothing of a namespace holds the user: no table, file of a snapshot, folder or store."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

import reqdedup as rd
from reqdedup.schema import REQUEST_TS
from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import number_events
from reqdedup.sequences.sequence_store import SequenceStore, store_columns
from reqdedup.sequences.shadow import shadow
from reqdedup.sequences.sources import IteratorSource
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.tables import delivered_of, load_raw
from reqdedup.sequences.timeline import open_timeline
from tests.storage.maintenance.searched_bytes import bytes_of

USER, OTHERS = 7_777_777_777_777_777, [1, 2**61]
LOG = EventLog(types=["view", "click"], columns={"query": "string"})
SEEN = SequenceDefinition(
    name="seen",
    events=[EventType("view"), EventType("click")],
    columns=["item_id", "event_ts"],
    last_n=5,
    owner="tests",
)
START_US, NOW_US = 1_790_000_000_000_000, 1_790_900_000_000_000
WORDS = {"text": str(USER).encode(), "number": USER.to_bytes(8, "little")}
TABLES = [
    "raw_events",
    "rejected_events",
    "user_events",
    "blobs",
    "pointers",
    "sequence_definitions",
    "sequence_shadow",
]


def events(first: int, count: int) -> pa.Table:
    """Of USER every third, and one of an unknown type."""
    rows = [
        {
            "event_id": number,
            "user_id": (USER, *OTHERS)[number % 3],
            "item_id": number,
            "event_type": "gone" if number == 3 else "view",
            "event_ts": START_US + number,
            "arrival_ts": START_US + number,
            "query": f"of {(USER, *OTHERS)[number % 3]}",
        }
        for number in range(first, first + count)
    ]
    return pa.Table.from_pylist(rows)


@pytest.mark.slow
def test_a_deleted_user_is_in_no_file_of_a_namespace(tmp_path: Path):
    lake = rd.open(tmp_path / "lake")
    catalog, sequences = lake.make(), lake.sequences("lake")
    sequences.publish(LOG, [SEEN])
    for first in (0, 30):
        sequences.deliver(LOG, IteratorSource(f"from {first}", [events(first, 30)]))
        sequences.advance(num_buckets=2)
    sequences.publish(LOG, [replace(SEEN, version=2, last_n=3)])
    sequences.backfill(publish=True)
    report = shadow(catalog, "lake", "seen", 1)
    assert str(USER) in "".join(row.examples for row in report.rows)
    requests = [{"user_id": user, "request_id": user, "item_id": 1, "click": 1} for user in (USER, *OTHERS)]
    at = pa.array([START_US + 90] * 3).cast(pa.timestamp("us", "UTC"))
    rows = pa.Table.from_pylist(requests).append_column(REQUEST_TS, at)
    for name, pointers in (("blobs", False), ("pointers", True)):
        sequences.write_training_table(f"lake.{name}", "seen", rows, labels=["click"], pointers=pointers)
    online = sequences.online(tmp_path / "online")
    delivered = delivered_of(load_raw(catalog, "lake"))
    store = SqliteStore(tmp_path / "store.sqlite", store_columns(open_timeline(catalog, "lake"), "seen"))
    sequences.fill_store(store, "seen")
    online.put(number_events(LOG, pl.DataFrame(events(60, 6)), delivered, NOW_US).events)
    assert SequenceStore(online, "seen").append_to(store, [USER, *OTHERS]) == 6
    online.close()
    store.close()
    places = [Path(catalog.load_table(f"lake.{name}").location().removeprefix("file://")) for name in TABLES]
    held = {place.name: bytes_of(place, WORDS) for place in (*places, tmp_path / "online")}
    assert {name for name, found in held.items() if not any(found.values())} == {
        "sequence_definitions",
        "sequence_shadow",
    }
    assert (held["user_events"]["manifests"], held["online"]["raw"]) == ({"number"}, {"number", "text"})
    lake.delete_user(
        [USER],
        namespaces="lake",
        online=tmp_path / "online",
        store=tmp_path / "store.sqlite",
        apply=True,
        drop_refs=True,
        erase=True,
    )
    for place in (tmp_path / "lake", tmp_path / "online"):
        assert not any(bytes_of(place, WORDS).values()), place
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    kept = {name for name, found in rows.items() if any(str(USER) in str(value) for row in found for value in row)}
    assert kept == {"deleted", "appended"}, "so that no fill and no repeated append brings the user back"
