"""A sequence as a store for servers is lists in a dict (`PlainStore`), in all that it serves."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reqdedup.arrays.windows import HistoryCut
from reqdedup.logs.synthetic_events import (
    DAY_US,
    EVENT_COLUMNS,
    EVENT_TYPES,
    SyntheticEventsConfig,
    synthetic_events,
)
from reqdedup.sequences.batch import advance
from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events, number_events
from reqdedup.sequences.online import open_online
from reqdedup.sequences.sequence_store import SequenceStore, fill_from_timeline, store_columns
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import TimelineEnd, Window, WindowError
from reqdedup.sequences.tables import Delivered
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage import open_catalog
from tests.sequences.plain_store import COLUMNS, NAMES, WHOLE, PlainStore, make_events, outcome, same_window

LOG = EventLog(types=["kept", "left"], columns={n: dtype for n, dtype in COLUMNS.items() if n != "item_id"})
KEPT = SequenceDefinition(name="kept", owner="tests", events=[EventType("kept")], columns=NAMES, last_n=10_000)
OTHER = SequenceDefinition(name="other", owner="tests", events=[EventType("left")], columns=["item_id"], last_n=5)
START_US = 1_760_000_000_000_000
IN_TABLES = 70
"""Events of user 0 that are in the view; those of the others come by `put` alone."""


class Putting:
    """A sequence's store on a catalog, and how events reach it: delivered in order, one in three of no sequence."""

    def __init__(self, folder, catalog):
        self.online = open_online(folder / uuid.uuid4().hex, catalog, "lake")
        self.store, self.position = SequenceStore(self.online, "kept"), self.online.position

    def put(self, user, events):
        frame = numbered(user, events, self.position)
        self.position += frame.height
        self.online.put(frame)


def numbered(user: int, events: dict[str, np.ndarray], position: int) -> pl.DataFrame:
    size = len(events["item_id"])
    frame = pl.DataFrame(events).with_columns(event_type=pl.lit("kept"))
    frame = pl.concat([frame, frame.head((size + 2) // 3).with_columns(event_type=pl.lit("left"))])
    place = pl.int_range(pl.len(), dtype=pl.Int64) + position
    time = (pl.lit(START_US, pl.Int64) + place).cast(pl.Datetime("us", "UTC"))
    frame = frame.with_columns(
        event_id=place, user_id=pl.lit(user, pl.Int64), event_ts=time, arrival_ts=time, position=place
    )
    return frame.select(*LOG.dtypes, "position")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence_store")
    catalog = open_catalog(properties={"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/tables"})
    append_events(catalog, "lake", LOG, [numbered(0, make_events(range(IN_TABLES)), 0).to_arrow()], source="files")
    advance(catalog, "lake", [KEPT, OTHER], num_buckets=2)
    return catalog


users = st.integers(0, 2)
steps = st.one_of(
    st.tuples(st.just("put"), users, st.sampled_from([0, 1, 2, 63, 64, 130]), st.integers(0, 10**6)),
    st.tuples(
        st.just("window"),
        users,
        st.sampled_from([1, 7, 64]),
        st.none() | st.integers(-1, 200),
        st.none() | st.integers(0, 2),
        st.sampled_from([NAMES, ("ts", "dwell"), ("price",), ()]),
    ),
    st.tuples(st.just("delete"), st.integers(1, 2)),
    st.tuples(st.just("refresh")),
)


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=12))
def test_a_sequence_is_lists_in_a_dict(catalog, tmp_path, todo):
    mine, plain = Putting(tmp_path, catalog), PlainStore()
    plain.append(0, make_events(range(IN_TABLES)), key="files")

    def later(found):
        """The plain store's versions begin with 0, those of the timeline with 1."""
        return found and Window(found.columns, found.start, found.end, found.version + 1)

    for number, step in enumerate(todo):
        match step:
            case "put", user, size, base:
                events = make_events(base + np.arange(size))
                mine.put(user, events)
                if size:
                    plain.append(user, events, key=str(number))
            case "window", user, most, at, version, columns:
                cut = HistoryCut(max_events=most)
                ask = {"start_of": lambda end, cut=cut: int(cut.start_of(end)), "at": at}
                found = outcome(mine.store.window, user, columns, version=version, **ask)
                wanted = outcome(plain.window, user, columns, version=None if version is None else version - 1, **ask)
                if "refused" in (found, wanted):
                    assert found == wanted
                else:
                    same_window(found, later(wanted))
            case "delete", user:
                assert mine.store.delete_user(user) == plain.delete_user(user)
            case ("refresh",):
                mine.online.refresh()
        for user in range(3):
            end = plain.end(user)
            assert mine.store.end(user) == (end and TimelineEnd(1, end.end))
            same_window(mine.store.window(user, NAMES, **WHOLE), later(plain.window(user, NAMES, **WHOLE)))
            together = mine.store.fetch(user, NAMES, ["age"], **WHOLE)
            same_window(together.window, later(plain.window(user, NAMES, **WHOLE)))
            assert (together.features, together.failure) == ({}, None)
    mine.store.close()


def test_what_arrives_later_never_changes_an_answer(catalog, tmp_path):
    mine, rng, seen = Putting(tmp_path, catalog), np.random.default_rng(0), {}
    cut = HistoryCut(max_events=100)
    for turn in range(15):
        mine.put(0, make_events(rng.integers(0, 10**6, int(rng.integers(0, 40)))))
        if turn == 8:
            mine.online.refresh()
        window = mine.store.window(0, NAMES, start_of=lambda end: int(cut.start_of(end)))
        seen[window.end] = window
        for at, before in seen.items():
            same_window(mine.store.window(0, NAMES, start_of=lambda end: int(cut.start_of(end)), at=at), before)
    mine.store.close()


def test_what_it_cannot_answer_is_said(catalog, tmp_path):
    store = Putting(tmp_path, catalog).store
    assert dict(store.columns) == COLUMNS
    for ask, message in [
        ({"at": 71}, "at: 0 to 70, the end of the timeline, required, found 71"),
        ({"at": -1}, "found -1"),
        ({"version": 2}, "version: a version of the timeline of user 0 required, found no version 2"),
        ({"start_of": lambda end: end + 1}, r"start_of\(70\): 0 to 70 required, found 71"),
    ]:
        with pytest.raises(WindowError, match=message):
            store.window(0, NAMES, **{**WHOLE, **ask})
    for write in (store.append, store.correct):
        with pytest.raises(ValueError, match="required, found a"):
            write(0, make_events([1]), key="a")
    store.close()


def test_what_was_put_of_a_deleted_user_is_not_taken_again(catalog, tmp_path):
    mine = Putting(tmp_path, catalog)
    events = numbered(5, make_events(range(9)), mine.position)
    assert mine.online.put(events) == events.height
    assert mine.store.delete_user(5)
    assert mine.online.put(events) == 0
    assert mine.store.end(5) is None
    mine.store.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("valkey", marks=pytest.mark.servers)])
def test_a_store_that_is_filled_from_the_timeline_answers_as_the_sequence_does(tmp_path, request, kind):
    catalog = open_catalog(properties={"uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}/tables"})
    config = SyntheticEventsConfig(num_users=30, num_items=50, num_days=2)
    log = EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS)
    seen = SequenceDefinition(
        name="seen",
        owner="tests",
        events=[EventType("view"), EventType("save")],
        columns=["item_id", "event_ts", "duration_s"],
        last_n=9,
    )
    append_events(catalog, "lake", log, synthetic_events(config), source="stream")
    advance(catalog, "lake", [seen], num_buckets=2)
    columns = store_columns(open_timeline(catalog, "lake"), "seen")
    assert columns == {"item_id": "int64", "ts": "int64", "duration_s": "float64"}
    if kind == "sqlite":
        filled = SqliteStore(tmp_path / "store.sqlite", columns)
    else:
        from reqdedup.sequences.valkey_store import ValkeyStore

        filled = ValkeyStore(request.getfixturevalue("valkey_server").url, columns, name=uuid.uuid4().hex, timeout_s=20)
    online = open_online(tmp_path / "online", catalog, "lake")
    sequence = SequenceStore(online, "seen")
    assert fill_from_timeline(filled, catalog, "lake", "seen").num_new > 20
    for user in range(config.num_users):
        assert filled.end(user) == sequence.end(user)
        for at in (None, 3):
            found, wanted = (
                outcome(one.window, user, list(columns), start_of=lambda end: end // 2, at=at)
                for one in (filled, sequence)
            )
            if "refused" in (found, wanted):
                assert found == wanted
            else:
                same_window(found, wanted)
    again = fill_from_timeline(filled, catalog, "lake", "seen")
    assert (again.num_new, again.num_changed) == (0, 0)
    # What arrives from then on, of users old and new; then the batch brings it too.
    more = pa.concat_tables(
        synthetic_events(replace(config, num_users=40, seed=1, start_us=config.start_us + 3 * DAY_US))
    )
    now_us = int(time.time() * 1e6)
    before = Delivered(next_position=online.position, arrival_us=online.view.state.arrival_us)
    frame = pl.from_arrow(more.set_column(0, "event_id", pa.array(range(10**6, 10**6 + len(more)))))
    for part in number_events(log, frame, before, now_us).events.iter_slices(100):
        online.put(part)
        changed = part["user_id"].unique()
        sequence.append_to(filled, changed)
        assert sequence.append_to(filled, changed) == 0
    for user in range(40):
        assert filled.end(user) == sequence.end(user)
        same_window(*(one.window(user, list(columns), **WHOLE) for one in (filled, sequence)))
    append_events(catalog, "lake", log, [frame.to_arrow()], source="more")
    advance(catalog, "lake", [seen])
    assert fill_from_timeline(filled, catalog, "lake", "seen").num_contradicted == 0
    for user in range(40):
        assert filled.end(user) == sequence.end(user)
    filled.close()
    sequence.close()
