"""After `delete_user` nothing of a namespace holds the user: no table, file of a snapshot, folder or store."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.avro.file import AvroFile
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.typedef import Record

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
WORDS = [str(USER).encode(), struct.pack("<q", USER), struct.pack(">q", USER)]


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


def values(path: Path) -> Iterator[Any]:
    """What a file says, uncompressed."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        yield from (value for row in pq.read_table(path).to_pylist() for value in row.values())
    elif path.suffix == ".avro":
        with AvroFile[Record](PyArrowFileIO().new_input(str(path))) as records:
            for record in records:
                yield from _flat(record)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Record):
        value = [value[place] for place in range(len(value))]
    elif isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list):
        yield value
        return
    for one in value:
        yield from _flat(one)


def naming(folder: Path) -> list[str]:
    """Files that hold the user's id, as a number or as text."""
    found = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        said = (value if isinstance(value, bytes) else str(value).encode() for value in values(path))
        if any(word in value for value in said for word in WORDS):
            found.append(str(path.relative_to(folder)))
    return found


@pytest.mark.slow
def test_a_deleted_user_is_in_no_file_of_a_namespace(tmp_path: Path):
    lake = rd.open(tmp_path / "lake")
    catalog, sequences = lake.make(), lake.sequences("lake")
    sequences.publish(LOG, [SEEN])
    for first in (0, 30):
        sequences.deliver(LOG, IteratorSource(f"from {first}", [events(first, 30)]))
        sequences.advance(num_buckets=2)
    sequences.publish(LOG, [shorter := replace(SEEN, version=2, last_n=3)])
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
    import polars as pl

    online.put(number_events(LOG, pl.DataFrame(events(60, 6)), delivered, NOW_US).events)
    assert SequenceStore(online, "seen").append_to(store, [USER, *OTHERS]) == 6
    online.close()
    store.close()
    before = naming(tmp_path)
    parts = ("raw_events", "user_events", "rejected_events", "blobs", "pointers", "online/", "delivered.wal", "store.")
    for part in (*parts, "-standing.parquet", ".avro"):
        assert any(part in name for name in before), part
    assert not any("sequence_shadow" in name for name in before)
    lake.delete_user(
        [USER],
        namespaces="lake",
        online=tmp_path / "online",
        store=tmp_path / "store.sqlite",
        apply=True,
        drop_refs=True,
        erase=True,
    )
    assert naming(tmp_path) == ["store.sqlite"]
    assert shorter.last_n == 3
