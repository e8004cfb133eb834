"""New types and columns of events, and a new enrichment, come in with a new version; what was before stays."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.sequences import naive
from reqdedup.sequences.batch import advance, backfill, check_timeline, publish_timeline
from reqdedup.sequences.columns import values_of
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.ends import add_histories, fetch_sequence, history_ends
from reqdedup.sequences.intake import append_events, number_events
from reqdedup.sequences.online import OnlineStore, open_online
from reqdedup.sequences.predicate import col
from reqdedup.sequences.published import publish_definitions, published_definitions
from reqdedup.sequences.tables import Delivered, delivered_of, load_raw, log_of
from reqdedup.sequences.timeline import open_timeline
from tests.sequences.event_lake import deliver, event, lake, requests_at
from tests.sequences.event_streams import (
    DAY_US,
    ITEM,
    LOG,
    NOW_US,
    PRICE,
    START_US,
    arrow_of,
    columns_of,
    frame_of,
    plain_lookups,
    same,
)

MORE = {"paid": pa.float64(), "shop": pa.int64()}
GROWN = EventLog(types=(*LOG.types, "share"), columns={**LOG.columns, "paid": "float64", "shop": "int64"})
SHOPS = [{"shop": 5, "region": 50}, {"shop": 6, "region": None}]
SHOP = Enrichment("shop", "lake.shops", "shop", ("region",))
ENGAGED = SequenceDefinition(
    name="engaged",
    events=[EventType("click"), EventType("view", where=col("duration_s") >= 10)],
    columns=["item_id", "event_type", "event_ts", "category"],
    last_n=5,
    enrichments=[ITEM],
    owner="tests",
)
SECOND = replace(
    ENGAGED,
    version=2,
    events=[*ENGAGED.events, EventType("share", where=(col("paid") >= 5) | (col("shop") == 6))],
    enrichments=[ITEM, PRICE, SHOP],
    columns=[*ENGAGED.columns, "price", "paid", "region"],
)
TABLES = {**plain_lookups(), SHOP.table: SHOPS}
USERS = (1, 2, 7)


def stream() -> list[dict[str, Any]]:
    """80 events of three users, some late, delivered twice, or at equal times; from number 40 on of the grown log."""
    draw, found, arrival = random.Random(12), [], START_US
    for number in range(80):
        arrival += draw.choice([0, 1, DAY_US // 8])
        if number % 9 == 8:
            found.append({**draw.choice(found[-12:]), "arrival_ts": arrival})
            continue
        one = event(number, arrival, user_id=draw.choice(USERS), item_id=draw.randrange(1, 6))
        one |= {"event_type": draw.choice(LOG.types), "duration_s": draw.choice([None, math.nan, 3.0, 30.0])}
        one |= {"event_ts": arrival - draw.choice([0, 3 * DAY_US]), "paid": None, "shop": None}
        if number >= 40:
            one["event_type"] = draw.choice([one["event_type"], "share"])
            one |= {"paid": draw.choice([None, math.nan, 4.9, 60.0]), "shop": draw.choice([None, 5, 6, 99])}
        found.append(one)
    return found


EVENTS = stream()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """The first 30 events, of the first log, in a timeline of the first definition."""
    found = lake(tmp_path)
    shops = pa.Table.from_pylist(SHOPS, pa.schema([("shop", pa.int64()), ("region", pa.int32())]))
    found.create_table(SHOP.table, shops.schema).append(shops)
    publish_definitions(found, "lake", LOG, [ENGAGED])
    deliver(found, EVENTS[:30], "first")
    advance(found, "lake", num_buckets=2)
    return found


def deliver_grown(catalog: Catalog, events: list[dict[str, Any]], source: str) -> None:
    append_events(catalog, "lake", GROWN, [arrow_of(events, **MORE)], source=source, now_us=NOW_US)


def plain(definition: SequenceDefinition, num_events: int) -> naive.Timelines:
    accepted = naive.accept(GROWN, EVENTS[:num_events], NOW_US)
    return naive.timelines(GROWN, [definition], accepted.events, TABLES)


def check_online(online: OnlineStore, definition: SequenceDefinition, num_events: int, schema: pa.Schema) -> None:
    required = plain(definition, num_events)
    schema = pa.schema([schema.field(name) for name in definition.columns])
    for user in USERS:
        timeline = required.of_user.get(user, [])
        for at_us in (EVENTS[20]["arrival_ts"], EVENTS[num_events - 1]["arrival_ts"], NOW_US):
            sequence = naive.sequence_at(definition, timeline, naive.history_end(timeline, at_us), at_us)
            assert same(online.fetch(user, "engaged", at_us=at_us), columns_of(sequence, schema, GROWN))


def check_batch(catalog: Catalog, definition: SequenceDefinition, num_events: int) -> None:
    required, timeline = plain(definition, num_events), open_timeline(catalog, "lake")
    assert check_timeline(timeline) == sum(map(len, required.of_user.values()))
    pairs = [(user, one["arrival_ts"] + 1) for user in USERS for one in EVENTS[:num_events:7]]
    ends = [naive.history_end(required.of_user.get(user, []), at_us) for user, at_us in pairs]
    assert history_ends(catalog, "lake", requests_at(pairs)).column("history_end").to_pylist() == ends
    schema = pa.schema([timeline.schema.field(name) for name in definition.columns])
    for user in USERS:
        fetched = fetch_sequence(catalog, "lake", user, "engaged")
        events = required.of_user.get(user, [])
        sequence = naive.sequence_at(definition, events, len(events))
        found = {name: values_of(fetched.column(name)) for name in definition.columns}
        assert same(found, columns_of(sequence, schema, GROWN))


@pytest.mark.slow
def test_new_types_columns_and_enrichments_are_batch_and_online_what_plain_loops_say(catalog: Catalog, tmp_path: Path):
    asked = requests_at([(user, EVENTS[day]["arrival_ts"]) for user in USERS for day in (10, 20, 29)])
    old = [batch.to_pylist() for batch in add_histories(catalog, "lake", "engaged", asked)]
    online = open_online(tmp_path / "online", catalog, "lake")
    numbered = delivered_of(load_raw(catalog, "lake"))
    online.put(number_events(LOG, frame_of(EVENTS[30:40]), numbered, NOW_US).events)
    changes = publish_definitions(catalog, "lake", GROWN, [SECOND])
    assert changes[0].differences == (
        "event log: type share: new",
        "event log: column paid: new, float64",
        "event log: column shop: new, int64",
    )
    assert changes[1].differences[1] == "engaged: columns: + price, + paid, + region"
    numbered = Delivered(next_position=40, arrival_us=EVENTS[39]["arrival_ts"])
    online.put(number_events(GROWN, frame_of(EVENTS[40:60], **MORE), numbered, NOW_US).events)
    check_online(online, ENGAGED, 60, open_timeline(catalog, "lake").schema)
    deliver_grown(catalog, EVENTS[30:60], "second")
    advance(catalog, "lake", [ENGAGED])  # the version that readers see goes on
    check_batch(catalog, ENGAGED, 60)
    with pytest.raises(ValueError, match="found engaged new, changed or gone; stage a new version"):
        advance(catalog, "lake")
    report = backfill(catalog, "lake")
    required = plain(SECOND, 60)
    counts = (report.counts.num_duplicates, report.counts.num_conflicts)
    assert counts == (required.num_duplicates, required.num_conflicts)
    check_batch(catalog, ENGAGED, 60)
    assert publish_timeline(catalog, "lake") == 2
    check_batch(catalog, SECOND, 60)
    schema = open_timeline(catalog, "lake").schema
    online.refresh()
    check_online(online, SECOND, 60, schema)
    numbered = delivered_of(load_raw(catalog, "lake"))
    online.put(number_events(GROWN, frame_of(EVENTS[60:], **MORE), numbered, NOW_US).events)
    check_online(online, SECOND, 80, schema)
    online.close()
    online = open_online(tmp_path / "online", catalog, "lake")  # what was put is run again
    check_online(online, SECOND, 80, schema)
    online.close()
    deliver_grown(catalog, EVENTS[60:], "third")
    advance(catalog, "lake")
    check_batch(catalog, SECOND, 80)
    shares = [one for of_user in plain(SECOND, 80).of_user.values() for one in of_user if one["event_type"] == "share"]
    assert len(shares) > 3
    assert [b.to_pylist() for b in add_histories(catalog, "lake", "engaged", asked, version=1)] == old


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"types": LOG.types[:2]}, "types view, click, save first"),
        ({"types": ("share", *LOG.types)}, "new types go behind"),
        ({"columns": {**LOG.columns, "surface": "int64"}}, "a column of another dtype has another name"),
        ({"columns": {"surface": "int32"}}, "and columns .* required"),
    ],
)
def test_a_log_that_lacks_something_of_the_one_before_is_refused(changed: dict, said: str):
    with pytest.raises(ValueError, match=said):
        replace(LOG, **changed).added_to(LOG)


def test_a_log_that_cannot_go_on_is_refused_before_anything_changes(catalog: Catalog):
    taken = replace(GROWN, columns={**GROWN.columns, "category": "int32"})
    for log in (taken, replace(LOG, types=LOG.types[1:])):
        definition = replace(SECOND, version=3, events=[EventType("click")], columns=["item_id"], enrichments=[])
        with pytest.raises(ValueError, match=r"found category again|types view, click, save first"):
            publish_definitions(catalog, "lake", log, [definition])
        with pytest.raises(ValueError, match=r"found category again|types view, click, save first"):
            append_events(catalog, "lake", log, [], source="never")
    assert log_of(load_raw(catalog, "lake")) == LOG
    assert published_definitions(catalog, "lake") == {"engaged": ENGAGED}
