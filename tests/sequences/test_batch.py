"""The timeline in tables: days, corrections, compaction and stores give what plain loops give, at every request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.catalog import Catalog

from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.sequences import naive
from reqdedup.sequences.batch import advance, backfill, check_timeline, compact_timeline, publish_timeline, stage_branch
from reqdedup.sequences.definition import EventType, SequenceDefinition
from reqdedup.sequences.ends import add_histories, fetch_sequence, history_ends, windows
from reqdedup.sequences.intake import number_events
from reqdedup.sequences.online import open_online
from reqdedup.sequences.predicate import col
from reqdedup.sequences.sequence_store import SequenceStore
from reqdedup.sequences.store import TimelineEnd, WindowError
from reqdedup.sequences.tables import delivered_of, load_raw
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.maintenance import expire_snapshots
from reqdedup.storage.maintenance.served_rows import delete_served
from tests.sequences.event_lake import deliver, event, lake, requests_at
from tests.sequences.event_streams import (
    DAY_US,
    HORIZON_US,
    ITEM,
    LOG,
    NOW_US,
    PRICE,
    START_US,
    columns_of,
    definitions,
    frame_of,
    plain_lookups,
    same,
    streams,
)

pytestmark = pytest.mark.slow

ENGAGED = SequenceDefinition(
    name="engaged",
    events=[EventType("click"), EventType("view", where=col("duration_s") >= 10)],
    columns=["item_id", "event_type", "event_ts", "category", "price"],
    last_n=3,
    enrichments=[ITEM, PRICE],
    owner="tests",
)
CLICKED = replace(ENGAGED, name="clicked", events=[EventType("click")], columns=["item_id"], enrichments=[], last_n=2)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return lake(tmp_path)


DRAWN = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=4, **DRAWN)
@given(events=streams(max_size=30), wanted=definitions(), data=st.data())
def test_days_micro_batches_and_the_store_equal_plain_loops_at_every_request(
    tmp_path_factory, events: list, wanted: list, data: st.DataObject
):
    check_a_stream(tmp_path_factory.mktemp("lake"), events, wanted, data)


@pytest.mark.soak
@settings(max_examples=150, **DRAWN)
@given(events=streams(max_size=80), wanted=definitions(), data=st.data())
def test_many_longer_streams_equal_plain_loops(tmp_path_factory, events: list, wanted: list, data: st.DataObject):
    check_a_stream(tmp_path_factory.mktemp("lake"), events, wanted, data)


def check_a_stream(folder: Path, events: list, wanted: list, data: st.DataObject) -> None:
    catalog = lake(folder)
    accepted = naive.accept(LOG, events, NOW_US)
    required = naive.timelines(LOG, wanted, accepted.events, plain_lookups(), horizon_us=HORIZON_US)
    first, second = sorted(data.draw(st.lists(st.integers(0, len(events)), min_size=2, max_size=2)))
    options = {"horizon_us": HORIZON_US, "num_buckets": 2, "part_rows": data.draw(st.sampled_from([10, 10**6]))}
    deliver(catalog, events[:first], "a")
    advance(catalog, "lake", wanted, **options)
    deliver(catalog, events[first:second], "b")
    advance(catalog, "lake", wanted, **options)
    online = open_online(folder / "online", catalog, "lake", horizon_us=HORIZON_US)
    delivered = delivered_of(load_raw(catalog, "lake"))
    rest = number_events(LOG, frame_of(events[second:]), delivered, NOW_US).events
    for part in rest.iter_slices(3):
        online.put(part)
    users = [1, 2, 7, -5, 2**62, 12345]
    stored = open_timeline(catalog, "lake").schema
    at = sorted({one["arrival_ts"] for one in accepted.events}) or [START_US]
    for user in users:
        timeline = required.of_user.get(user, [])
        for at_us in [at[0], at[len(at) // 2] + 1, at[-1], at[-1] + 1]:
            for one in wanted:
                sequence = naive.sequence_at(one, timeline, naive.history_end(timeline, at_us), at_us)
                schema = pa.schema([stored.field(name) for name in one.columns])
                assert same(online.fetch(user, one.name, at_us=at_us), columns_of(sequence, schema))
        for one in wanted:
            columns = [*one.columns, "arrival_ts"]
            whole = naive.sequence_at(replace(one, last_n=10**6, window=None, columns=columns), timeline, len(timeline))
            store = SequenceStore(online, one.name)
            assert (store.end(user) or TimelineEnd(1, 0)) == TimelineEnd(1, len(whole))
            schema = pa.schema([stored.field(name) for name in store.columns if name != "ts"])
            for first, last in ((0, len(whole)), (len(whole) // 3, len(whole) * 2 // 3)) if whole else ():
                window = store.window(user, list(store.columns), start_of=lambda _, first=first: first, at=last)
                happened = [min(event["event_ts"], event["arrival_ts"]) // 1000 for event in whole[first:last]]
                assert window.columns["ts"].tolist() == happened
                found = {name: values for name, values in window.columns.items() if name != "ts"}
                assert same(found, columns_of(whole[first:last], schema))
                assert (window.start, window.end, window.version) == (first, last, 1)
    online.close()
    deliver(catalog, events[second:], "c")
    advance(catalog, "lake", wanted, **options)
    check_everything(catalog, wanted, required, users, at)
    compact_timeline(catalog, "lake")
    check_everything(catalog, wanted, required, users, at)


def check_everything(
    catalog: Catalog, wanted: list, required: naive.Timelines, users: list[int], at: list[int]
) -> None:
    timeline = open_timeline(catalog, "lake")
    assert check_timeline(timeline) == sum(map(len, required.of_user.values()))
    pairs = [(user, at_us) for user in users for at_us in [at[0], at[len(at) // 2] + 1, at[-1], at[-1] + 1]]
    found = history_ends(catalog, "lake", requests_at(pairs))
    ends = [naive.history_end(required.of_user.get(user, []), at_us) for user, at_us in pairs]
    assert found.column("history_end").to_pylist() == ends
    user_R, at_us_R = (np.array(values) for values in zip(*pairs))
    for one in wanted:
        numeric = replace(one, columns=[name for name in one.columns if name != "query"])
        seen = 0
        for row_R, part in windows(timeline, numeric, user_R, at_us_R):
            for row, start, length in zip(row_R, part.start_R, part.length_R):
                user, at_us = pairs[row]
                sequence = naive.sequence_at(numeric, required.of_user.get(user, []), ends[row], at_us)
                schema = pa.schema([timeline.schema.field(name) for name in numeric.columns])
                window = {name: values[start : start + length] for name, values in part.columns.items()}
                assert same(window, columns_of(sequence, schema))
                seen += 1
        assert seen == len(pairs)


def test_a_run_that_is_repeated_finds_nothing_to_do(catalog: Catalog):
    deliver(catalog, [event(1, START_US), event(1, START_US + 5)])
    report = advance(catalog, "lake", [ENGAGED])
    assert (report.counts.num_kept, report.counts.num_duplicates, report.position) == (1, 1, 2)
    again = advance(catalog, "lake", [ENGAGED])
    assert (again.counts.num_delivered, again.num_files, again.position) == (0, 0, 2)
    deliver(catalog, [event(2, START_US + 9)])  # a source that is known
    assert advance(catalog, "lake", [ENGAGED]).position == 2


def test_a_late_event_changes_no_earlier_request(catalog: Catalog):
    deliver(catalog, [event(1, START_US), event(2, START_US + 10, item_id=2)], "a")
    advance(catalog, "lake", [ENGAGED])
    asked = requests_at([(7, START_US + 11)])
    before = history_ends(catalog, "lake", asked)
    deliver(catalog, [event(3, START_US + DAY_US, event_ts=START_US + 5)], "b")
    report = advance(catalog, "lake", [ENGAGED])
    assert report.counts.num_late == 1
    assert history_ends(catalog, "lake", asked).equals(before)
    assert history_ends(catalog, "lake", requests_at([(7, START_US + 2 * DAY_US)])).column(
        "history_end"
    ).to_pylist() == [3]


def test_histories_are_blobs_that_rows_of_one_window_share(catalog: Catalog):
    deliver(catalog, [event(one, START_US + one, item_id=one % 4 + 1) for one in range(6)])
    advance(catalog, "lake", [ENGAGED, CLICKED])
    asked = requests_at([(7, START_US + 4), (8, START_US + 4), (7, START_US + 4), (7, START_US + 100)])
    asked = asked.append_column("click", pa.array([1, 2, 3, 4]))
    batches = list(add_histories(catalog, "lake", "engaged", asked))
    rows = pa.Table.from_batches(batches).combine_chunks()
    assert rows.num_rows == 4
    for batch in batches:
        column = batch.column("history_item_id")
        values, offsets = numpy_from_blobs(column.dictionary, "int64")
        for row in range(batch.num_rows):
            code = column.indices[row].as_py()
            window = values[offsets[code] : offsets[code + 1]].tolist()
            required = {1: [2, 3, 4], 2: [], 3: [2, 3, 4], 4: [4, 1, 2]}[batch.column("click")[row].as_py()]
            assert window == required
    assert sum(len(batch.column("history_item_id").dictionary) for batch in batches) == 3
    with pytest.raises(ValueError, match="a sequence of clicked, engaged required, found 'saved'"):
        list(add_histories(catalog, "lake", "saved", asked))


def test_a_changed_definition_makes_a_version_and_old_requests_keep_theirs(catalog: Catalog):
    events = [
        event(one, START_US + one, event_type="click" if one % 2 else "view", duration_s=float(one))
        for one in range(30)
    ]
    deliver(catalog, events[:20], "a")
    advance(catalog, "lake", [ENGAGED])
    asked = requests_at([(7, START_US + 25)])
    old = history_ends(catalog, "lake", asked)
    changed = replace(ENGAGED, version=2, events=[EventType("click")])
    with pytest.raises(ValueError, match="found engaged new, changed or gone; stage a new version"):
        advance(catalog, "lake", [changed])
    backfill(catalog, "lake", [changed])
    assert open_timeline(catalog, "lake").state.version == 1
    deliver(catalog, events[20:], "b")
    advance(catalog, "lake", [ENGAGED])  # main moves on while a version is staged
    assert publish_timeline(catalog, "lake") == 2
    timeline = open_timeline(catalog, "lake")
    assert (timeline.state.version, timeline.state.position) == (2, 30)
    accepted = naive.accept(LOG, events, NOW_US)
    required = naive.timelines(LOG, [changed], accepted.events, plain_lookups())
    check_everything(catalog, [changed], required, [7], [START_US, START_US + 29])
    expire_snapshots(timeline.table, older_than=datetime.now(UTC))
    assert open_timeline(catalog, "lake", version=1).state.version == 1
    now = history_ends(catalog, "lake", asked, version=1)
    assert (now.column("timeline_version").to_pylist(), old.column("timeline_version").to_pylist()) == ([1], [1])
    with pytest.raises(ValueError, match=r"a version of the timeline required \(1, 2\), found 3"):
        open_timeline(catalog, "lake", version=3)
    with pytest.raises(ValueError, match="a staged version 3 required, found none"):
        publish_timeline(catalog, "lake")


def test_a_version_stays_what_it_was_if_its_last_snapshot_is_of_a_deletion(catalog: Catalog):
    """Which is of no run of ours, nor that of another engine: it does not say what the timeline holds."""
    events = [
        event(one, START_US + one, user_id=7 + one % 2, event_type="click" if one % 4 else "view") for one in range(20)
    ]
    deliver(catalog, events)
    advance(catalog, "lake", [ENGAGED])
    delete_served(catalog.load_table("lake.user_events"), np.array([8]), np.array([], np.int64))
    before, old = fetch_sequence(catalog, "lake", 7, "engaged"), open_timeline(catalog, "lake").state
    backfill(catalog, "lake", [replace(ENGAGED, version=2, last_n=2, events=[EventType("view")])])
    publish_timeline(catalog, "lake")
    assert fetch_sequence(catalog, "lake", 7, "engaged").num_rows < before.num_rows
    assert open_timeline(catalog, "lake", 1).state == old
    assert fetch_sequence(catalog, "lake", 7, "engaged", version=1).equals(before)
    with catalog.load_table("lake.user_events").transaction() as transaction:
        transaction.remove_properties("reqdedup.timeline-v1")  # as an earlier reqdedup left it
    with pytest.raises(ValueError, match="what version 1 holds required, found it said nowhere"):
        open_timeline(catalog, "lake", 1)


def test_threads_that_refresh_an_online_store_at_once_leave_one_view(catalog: Catalog, tmp_path: Path):
    deliver(catalog, [event(one, START_US + one) for one in range(3)])
    advance(catalog, "lake", [ENGAGED])
    store = open_online(tmp_path / "online", catalog, "lake")
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(store.refresh), pool.submit(store.delete_users, [9]), pool.submit(store.refresh)]:
            done.result()
    store.close()
    assert len(list((tmp_path / "online").glob("view-*"))) == 1
    store = open_online(tmp_path / "online", catalog, "lake")
    assert len(store.fetch(7, "engaged")["item_id"]) == 3
    store.close()


def test_what_was_put_of_a_deleted_user_is_not_taken_again_by_a_store_that_was_opened_since(
    catalog: Catalog, tmp_path: Path
):
    deliver(catalog, [event(1, START_US)])
    advance(catalog, "lake", [ENGAGED])
    store = open_online(tmp_path / "online", catalog, "lake")
    events = [event(2, START_US + 1), event(3, START_US + 2, user_id=8)]
    put = number_events(LOG, frame_of(events), delivered_of(load_raw(catalog, "lake")), NOW_US).events
    assert store.put(put) == 2
    store.delete_users([8])
    store.close()
    store = open_online(tmp_path / "online", catalog, "lake")
    assert (store.position, store.put(put)) == (3, 0)
    assert [len(store.fetch(user, "engaged")["item_id"]) for user in (7, 8)] == [2, 0]
    store.close()


def test_a_version_that_was_not_finished_is_not_published(catalog: Catalog):
    deliver(catalog, [event(1, START_US)])
    advance(catalog, "lake", [ENGAGED])
    table = catalog.load_table("lake.user_events")
    stage_branch(table, 2, main=table.current_snapshot().snapshot_id)  # all that a killed backfill has done
    with pytest.raises(ValueError, match="version 2 was not finished; run the backfill again"):
        publish_timeline(catalog, "lake")
    with pytest.raises(ValueError, match="version 2 was not finished; run the backfill again"):
        fetch_sequence(catalog, "lake", 7, "engaged", version=2)
    backfill(catalog, "lake", [ENGAGED])
    assert publish_timeline(catalog, "lake") == 2


def test_two_runs_at_once_commit_once(catalog: Catalog, monkeypatch):
    deliver(catalog, [event(1, START_US)], "a")
    advance(catalog, "lake", [ENGAGED])
    deliver(catalog, [event(2, START_US + 1)], "b")
    from reqdedup.sequences import batch

    whole = batch.write_rows

    def slowly(*arguments: Any) -> None:
        whole(*arguments)
        monkeypatch.setattr(batch, "write_rows", whole)
        advance(catalog, "lake", [ENGAGED])

    monkeypatch.setattr(batch, "write_rows", slowly)
    with pytest.raises(ConflictError, match="another writer was faster"):
        advance(catalog, "lake", [ENGAGED])
    assert check_timeline(open_timeline(catalog, "lake")) == 2


def test_a_sequence_is_a_store_for_servers(catalog: Catalog, tmp_path: Path):
    deliver(catalog, [event(one, START_US + one, item_id=one % 4 + 1) for one in range(6)])
    advance(catalog, "lake", [ENGAGED])
    online = open_online(tmp_path / "online", catalog, "lake")
    store = SequenceStore(online, "engaged")
    assert dict(store.columns) == {
        "item_id": "int64",
        "event_type": "int32",
        "ts": "int64",
        "category": "int32",
        "price": "float64",
    }
    window = store.window(7, ["item_id"], start_of=lambda end: end - 2)
    assert (window.columns["item_id"].tolist(), window.start, window.end) == ([1, 2], 4, 6)
    assert store.window(8, ["item_id"], start_of=lambda end: 0) is None
    with pytest.raises(WindowError, match="0 to 6, the end of the timeline, required, found 7"):
        store.window(7, ["item_id"], start_of=lambda end: 0, at=7)
    with pytest.raises(WindowError, match="no version 2"):
        store.window(7, ["item_id"], start_of=lambda end: 0, version=2)
    with pytest.raises(ValueError, match=r"events by `OnlineStore.put` required"):
        store.append(7, {}, key="k")
    ends = pa.Table.from_batches(list(add_histories(catalog, "lake", "engaged", requests_at([(7, START_US + 4)]))))
    assert ends.column("history_end").to_pylist() == [4]
    store.close()
