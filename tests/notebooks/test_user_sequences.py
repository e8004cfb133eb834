"""The notebook of sequences says where the timeline stands, draws it, and counts what late events would do."""

from __future__ import annotations

import re
from itertools import islice

import pytest

import reqdedup as rd
from reqdedup.logs.synthetic_events import (
    EVENT_COLUMNS,
    EVENT_TYPES,
    SyntheticEventsConfig,
    synthetic_events,
    synthetic_items,
)
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.quality import sequence_quality
from reqdedup.sequences.sources import IteratorSource
from tests.notebooks.running import NOTEBOOKS, outputs, run_notebook
from warehouse import write_report_table

CONFIG = SyntheticEventsConfig(num_users=60, num_items=50, num_days=4, late_share=0.05)
LOG = EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS)
ALL = SequenceDefinition(
    name="every",
    owner="tests",
    events=[EventType(name) for name in EVENT_TYPES],
    enrichments=[Enrichment("item", "own.event_items", "item_id", ["category"])],
    columns=["item_id", "category"],
    last_n=20,
)


@pytest.mark.slow
def test_the_notebook_draws_a_user_and_counts_requests_that_would_leak(tmp_path):
    lake = rd.open(tmp_path)
    write_report_table(lake.make(), "own", "event_items", synthetic_items(CONFIG))
    sequences = lake.sequences("own")
    sequences.publish(LOG, [ALL])
    sequences.deliver(LOG, IteratorSource("stream", islice(synthetic_events(CONFIG), CONFIG.num_days)))
    sequences.advance(num_buckets=2)
    write_report_table(lake.catalog, "own", "sequence_quality", sequence_quality(lake.catalog, "own"))
    notebook = run_notebook(NOTEBOOKS / "user_sequences.py", data_dir=str(tmp_path))
    said = "".join(outputs(notebook, "stream"))
    assert "every: version 1, draft, last 20, owner tests" in said
    assert f"delivered {sequences.status()['delivered']:>19,} events" in said
    assert "100.0% of the events of the last day have a value of the enrichment item" in said
    assert len(outputs(notebook, "image/png")) == 2
    wrong = num = 0
    users: dict[int, list] = {}
    for row in _events(lake):
        users.setdefault(row["user_id"], []).append(row)
    rows = [(user, place) for user in sorted(users) for place in range(len(users[user]))]
    for user, place in rows[::10]:
        at = users[user][place]["arrival_ts"]
        wrong += any(event["event_ts"] < at for event in users[user][place + 1 :])
        num += 1
    found = re.search(r"([0-9.]+)% of ([0-9,]+) requests would see", said)
    assert int(found[2].replace(",", "")) == num
    assert float(found[1]) == pytest.approx(100 * wrong / num, abs=0.051)


def _events(lake) -> list[dict]:
    table = lake.catalog.load_table("own.user_events").scan().to_arrow()
    return table.sort_by([("user_id", "ascending"), ("timeline_index", "ascending")]).to_pylist()
