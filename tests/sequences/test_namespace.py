"""`rd.open().sequences(...)`: from events to a training table and a fetch in one object."""

from __future__ import annotations

from pathlib import Path

import pytest

import reqdedup as rd
from reqdedup.logs.synthetic_events import (
    EVENT_COLUMNS,
    EVENT_TYPES,
    SyntheticEventsConfig,
    synthetic_events,
    synthetic_items,
    synthetic_requests,
)
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.predicate import col
from reqdedup.sequences.sources import IteratorSource

CONFIG = SyntheticEventsConfig(num_users=40, num_items=200, num_days=3)
LOG = EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS)
ENGAGED = SequenceDefinition(
    name="engaged",
    events=[EventType("click"), EventType("save"), EventType("view", col("duration_s") >= 10)],
    enrichments=[Enrichment("item", "lake.items", "item_id", ["category"])],
    columns=["item_id", "category"],
    last_n=20,
    owner="tests",
)


@pytest.mark.slow
def test_from_a_stream_to_a_training_table_and_a_fetch(tmp_path: Path):
    lake = rd.open(tmp_path)
    catalog = lake.make()
    catalog.create_namespace("lake")
    items = synthetic_items(CONFIG)
    catalog.create_table("lake.items", items.schema).append(items)
    sequences = lake.sequences("lake")
    assert [change.ok for change in sequences.check([ENGAGED])] == [True]
    sequences.publish(LOG, [ENGAGED])
    days = list(synthetic_events(CONFIG))
    for name, some in (("first days", days[:2]), ("last days", days[2:])):
        sequences.deliver(LOG, IteratorSource(name, some))
        report = sequences.advance(num_buckets=2)
        assert report.counts.num_delivered == sum(map(len, some))
    assert sequences.compact().num_files <= 4
    rows = synthetic_requests(CONFIG, num_requests=40, fan_out=3)
    sequences.write_training_table("lake.engagements_by_request", "engaged", rows, labels=["click"], num_buckets=2)
    made = lake.table("lake.engagements_by_request").to_polars()
    assert made.height == len(rows)
    ends = sequences.history_ends(rows)
    assert max(ends.column("history_end").to_pylist()) > 20
    store = sequences.online(tmp_path / "online")
    for row in made.iter_rows(named=True):
        at_us = round(row["request_ts"].timestamp() * 1e6)
        assert store.fetch(row["user_id"], "engaged", at_us=at_us)["item_id"].tolist() == row["history_item_id"]
        assert len(row["history_item_id"]) == min(20, row["history_end"])
    store.close()
    user = made["user_id"][0]
    assert sequences.fetch(user, "engaged").num_rows <= 20
    assert sequences.status()["waiting"] == 0
