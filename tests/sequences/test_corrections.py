"""A correction writes the files that it changes, days are made anew alone, retention clears: what a request saw stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.sequences import naive
from reqdedup.sequences.batch import advance, check_timeline, compact_timeline, publish_timeline
from reqdedup.sequences.corrections import backfill_days, correct_enrichment
from reqdedup.sequences.definition import EventType, SequenceDefinition
from reqdedup.sequences.ends import add_histories, fetch_sequence, history_ends
from reqdedup.sequences.online import open_online
from reqdedup.sequences.published import publish_definitions
from reqdedup.sequences.retention import apply_retention
from reqdedup.sequences.sequence_store import SequenceStore
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage.maintenance import expire_snapshots
from tests.sequences.event_lake import deliver, event, lake, requests_at
from tests.sequences.event_streams import (
    DAY_US,
    ITEM,
    ITEM_ROWS,
    ITEMS,
    LOG,
    NOW_US,
    PRICE,
    START_US,
    lookups,
    plain_lookups,
)

pytestmark = pytest.mark.slow

ENGAGED = SequenceDefinition(
    name="engaged",
    events=[EventType("click")],
    columns=["item_id", "event_ts", "category", "price"],
    last_n=40,
    enrichments=[ITEM, PRICE],
    owner="tests",
    retention="60d",
)
USERS = (1, 2, 7)


def stream(first: int, num: int) -> list[dict]:
    """Half a day between two events; some are late, of other types, delivered twice."""
    found = []
    for number in range(first, first + num):
        arrival = START_US + number * DAY_US // 2
        one = event(number, arrival, user_id=USERS[number % 3], item_id=number % 4 + 1)
        one["event_type"] = "view" if number % 5 == 4 else "click"
        one["event_ts"] -= 3 * 3_600_000_000 if number % 7 == 0 else 0
        found += [one, {**one, "arrival_ts": arrival + 1}] if number % 11 == 0 else [one]
    return found


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Sixty events a user over three months."""
    found = lake(tmp_path)
    publish_definitions(found, "lake", LOG, [ENGAGED])
    deliver(found, stream(0, 180), "three months")
    advance(found, "lake", num_buckets=2)
    return found


def asked() -> pa.Table:
    times = [START_US + day * DAY_US for day in (1, 40, 80, 89)]
    return requests_at([(user, at) for user in USERS for at in times])


def read(catalog: Catalog, version: int | None = None) -> list[dict]:
    """The histories of requests and their pointers, and one fetched by itself."""
    rows = [
        row
        for batch in add_histories(catalog, "lake", "engaged", asked(), version=version)
        for row in batch.to_pylist()
    ]
    at = datetime.fromtimestamp(START_US / 1e6 + 80 * 86_400, UTC)
    ends = history_ends(catalog, "lake", asked(), version=version).column("history_end").to_pylist()
    return [*rows, *fetch_sequence(catalog, "lake", 7, "engaged", at=at, version=version).to_pylist(), {"ends": ends}]


def change_items(catalog: Catalog, **changed: int) -> None:
    rows = [{**row, "category": changed.get(f"item_{row['item_id']}", row["category"])} for row in ITEM_ROWS]
    catalog.load_table(ITEMS).overwrite(pa.Table.from_pylist(rows, lookups()[ITEMS].schema))


def categories(catalog: Catalog, at_day: int) -> list[int | None]:
    at = datetime.fromtimestamp(START_US / 1e6 + at_day * 86_400, UTC)
    return fetch_sequence(catalog, "lake", 7, "engaged", ["category"], at=at).column(0).to_pylist()


def test_a_request_s_sequence_is_the_same_today_and_after_all_that_happens_to_a_timeline(catalog: Catalog):
    today = read(catalog)
    accepted = naive.accept(LOG, stream(0, 180), NOW_US)
    required = naive.timelines(LOG, [ENGAGED], accepted.events, plain_lookups())
    for row in today[: len(asked())]:
        at_us = round(row["request_ts"].timestamp() * 1e6)
        timeline = required.of_user[row["user_id"]]
        sequence = naive.sequence_at(ENGAGED, timeline, naive.history_end(timeline, at_us), at_us)
        assert np.frombuffer(row["history_item_id"], "<i8").tolist() == [one["item_id"] for one in sequence]
    deliver(catalog, stream(180, 60), "thirty more days")
    advance(catalog, "lake")
    assert read(catalog) == today
    compact_timeline(catalog, "lake")
    assert read(catalog) == today
    for name in ("user_events", "raw_events"):
        expire_snapshots(catalog.load_table(f"lake.{name}"), older_than=datetime.now(UTC))
    deliver(catalog, stream(0, 180), "three months")  # once more, which an old snapshot knew
    assert advance(catalog, "lake").counts.num_delivered == 0
    assert read(catalog) == today
    change_items(catalog, item_2=77)
    correct_enrichment(catalog, "lake", "item")
    publish_timeline(catalog, "lake")
    assert read(catalog, version=1) == today
    assert read(catalog) != today


def test_a_correction_writes_the_files_whose_values_change_and_no_others(catalog: Catalog):
    deliver(catalog, [event(1000, START_US + 100 * DAY_US, user_id=7, item_id=99)], "another item")
    advance(catalog, "lake")
    before = open_timeline(catalog, "lake")
    old, were = read(catalog), categories(catalog, 90)
    catalog.load_table(ITEMS).append(pa.Table.from_pylist([{"item_id": 99, "category": 5}], lookups()[ITEMS].schema))
    assert correct_enrichment(catalog, "lake", "price").num_files == 0  # nothing of it changed, nothing was staged
    with pytest.raises(ValueError, match=r"an enrichment of the timeline \(item, price\) required, found 'items'"):
        correct_enrichment(catalog, "lake", "items")
    report = correct_enrichment(catalog, "lake", "item")
    assert (report.num_events, report.num_files, report.num_kept_files) == (1, 1, len(before.files) - 1)
    assert report.num_bytes <= 1.2 * report.touched_bytes
    assert read(catalog) == old  # staged, and seen by nobody
    deliver(catalog, [event(1001, START_US + 101 * DAY_US, user_id=7, item_id=99)], "since")
    advance(catalog, "lake")
    assert publish_timeline(catalog, "lake") == 2
    after = open_timeline(catalog, "lake")
    assert check_timeline(after) == check_timeline(before) + 1
    assert (
        len({file.file_path for file in after.files} & {file.file_path for file in before.files})
        == len(before.files) - 1
    )
    assert categories(catalog, 110)[-2:] == [5, 5]
    assert categories(catalog, 90) == were
    store = open_online(Path(catalog.properties["uri"].removeprefix("sqlite:///")).parent / "online", catalog, "lake")
    assert store.fetch(7, "engaged", ["category"])["category"].tolist()[-2:] == [5, 5]
    store.close()


def test_days_are_made_anew_and_the_others_stay(catalog: Catalog):
    change_items(catalog, item_2=77)
    before, items = categories(catalog, 90), fetch_sequence(catalog, "lake", 7, "engaged", ["item_id", "event_ts"])
    since, until = (date.fromtimestamp(START_US / 1e6 + day * 86_400) for day in (75, 82))
    report = backfill_days(catalog, "lake", since, until)
    assert report.counts.num_delivered == len(stream(150, 14))
    assert categories(catalog, 90) == before
    publish_timeline(catalog, "lake")
    at = [one.date() for one in items.column("event_ts").to_pylist()]
    assert categories(catalog, 90) == [
        77 if item == 2 and since <= day < until else old
        for item, day, old in zip(items.column("item_id").to_pylist(), at, before, strict=True)
    ]
    assert 77 in categories(catalog, 90)
    assert fetch_sequence(catalog, "lake", 7, "engaged", ["item_id", "event_ts"]).equals(items)
    backfill_days(catalog, "lake", since)
    publish_timeline(catalog, "lake")
    assert check_timeline(open_timeline(catalog, "lake")) == check_timeline(open_timeline(catalog, "lake", 1))
    with pytest.raises(ValueError, match="a day after 2025-"):
        backfill_days(catalog, "lake", since, since)


def test_what_is_beyond_the_retention_is_cleared_and_numbers_stay(catalog: Catalog, tmp_path: Path):
    change_items(catalog, item_1=11)
    correct_enrichment(catalog, "lake", "item")
    publish_timeline(catalog, "lake")
    now = datetime.fromtimestamp(START_US / 1e6 + 100 * 86_400, UTC)
    dry = apply_retention(catalog, "lake", now=now)
    kept_from = dry.kept_from
    assert kept_from == datetime(2025, 7, 1, tzinfo=UTC)
    assert dry.num_events > 0 < dry.num_delivered
    ends, recent = history_ends(catalog, "lake", asked()), [one for one in read(catalog) if "history_ts" in one]
    assert apply_retention(catalog, "lake", apply=True, now=now) == dry
    again = apply_retention(catalog, "lake", apply=True, now=now)
    assert (again.num_events, again.num_delivered, again.held_by) == (0, 0, [1])
    timeline = open_timeline(catalog, "lake")
    assert check_timeline(timeline) == 144
    assert history_ends(catalog, "lake", asked()).equals(ends)
    cut_ms = kept_from.timestamp() * 1000
    for row, was in zip([one for one in read(catalog) if "history_ts" in one], recent, strict=True):
        at, had = (np.frombuffer(one["history_ts"], "<i8") for one in (row, was))
        assert at.tolist() == had[had >= cut_ms].tolist()
        assert row["history_end"] == was["history_end"]
    rows = pa.concat_tables([timeline.read(bucket, timeline.schema.names) for bucket in range(2)])
    old = rows.filter(pa.compute.less(rows.column("arrival_ts"), pa.scalar(kept_from)))
    assert len(old) == dry.num_events
    for name in ("item_id", "surface", "category", "price"):
        assert old.column(name).null_count == len(old)
    raw = catalog.load_table("lake.raw_events").scan().to_arrow()
    assert min(raw.column("arrival_ts").to_pylist()) >= kept_from
    with pytest.raises(ValueError, match="events are kept from 2025-07-01 on"):
        backfill_days(catalog, "lake", date(2025, 6, 20))
    online = open_online(tmp_path / "online", catalog, "lake")
    fetched = fetch_sequence(catalog, "lake", 7, "engaged", ["item_id"])
    assert online.fetch(7, "engaged", ["item_id"])["item_id"].tolist() == fetched.column(0).to_pylist()
    window = SequenceStore(online, "engaged").window(7, ["item_id"], start_of=lambda end: 0)
    assert window.columns["item_id"].tolist() == fetched.column(0).to_pylist()
    assert (window.start, window.end) == (window.end - len(fetched), 48)
    online.close()
    deliver(catalog, stream(180, 3), "since")
    assert advance(catalog, "lake").counts.num_kept == 3
    assert check_timeline(open_timeline(catalog, "lake")) == 147
    publish_definitions(catalog, "lake", LOG, [replace(ENGAGED, retention=None)])
    assert apply_retention(catalog, "lake", now=now).kept_from is None
