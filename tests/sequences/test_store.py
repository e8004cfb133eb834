"""Every store behaves like lists in a dict (`PlainStore`)."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reqdedup.arrays.windows import HistoryCut
from reqdedup.sequences.packing import CHUNK
from reqdedup.sequences.store import TimelineEnd, UserRecord, now_us
from tests.sequences.plain_store import COLUMNS, NAMES, WHOLE, PlainStore, make_events, outcome, same_window

users = st.integers(0, 2)
sizes = st.sampled_from([0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 5])
values = st.integers(0, 10**9)
keys = st.integers(0, 6).map(str)
cuts = st.sampled_from([1, 7, CHUNK, 2 * CHUNK]).map(lambda most: HistoryCut(max_events=most))
records = st.builds(
    lambda start, size, base, feature: (start, size, base, feature),
    st.sampled_from([0, 3, CHUNK, CHUNK + 3]),
    sizes,
    st.sampled_from([0, 0, 0, 5]),
    st.sampled_from([{}, {"age": 3}, {"age": None, "name": "µ", "x": 0.5}]),
)
steps = st.one_of(
    st.tuples(st.just("append"), users, sizes, values, keys),
    st.tuples(st.just("correct"), users, sizes, values, keys, st.sampled_from([0, 5, CHUNK])),
    st.tuples(st.just("window"), users, cuts, st.none() | st.integers(-1, 3 * CHUNK), st.none() | st.integers(0, 3)),
    st.tuples(st.just("delete"), users),
    st.tuples(st.just("fill"), st.dictionaries(users, records)),
)


def user_records(by_user):
    """A table's users. Events follow from their numbers, so that fills agree unless `base` differs."""
    return [
        UserRecord(
            user_id=user,
            timelines={0: (start, make_events(base + np.arange(start, start + size)))},
            features=features,
        )
        for user, (start, size, base, features) in by_user.items()
    ]


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=12))
def test_a_store_is_lists_in_a_dict(new_store, todo):
    store, plain = new_store(), PlainStore()
    for step in todo:
        match step:
            case "append", user, size, base, key:
                events = make_events(base + np.arange(size))
                found, wanted = (outcome(s.append, user, events, key=key) for s in (store, plain))
                assert found == wanted
            case "correct", user, size, base, key, start:
                events = make_events(base + np.arange(size))
                found, wanted = (outcome(s.correct, user, events, key=key, start=start) for s in (store, plain))
                assert found == wanted
            case "window", user, cut, at, version:
                ask = {"start_of": lambda end, cut=cut: int(cut.start_of(end)), "at": at, "version": version}
                found, wanted = (outcome(s.window, user, ("ts", "dwell"), **ask) for s in (store, plain))
                if "refused" in (found, wanted):
                    assert found == wanted
                else:
                    same_window(found, wanted)
            case "delete", user:
                assert store.delete_user(user) == plain.delete_user(user)
            case "fill", by_user:
                report = store.fill(user_records(by_user), source={"snapshot": len(by_user)})
                plain.fill(user_records(by_user), source={"snapshot": len(by_user)})
                assert report.num_users == len(by_user)
                again = store.fill(user_records(by_user), source={"snapshot": len(by_user)})
                assert again.num_same == len(by_user)
        assert store.filled_from() == plain.filled_from()
        for user in range(3):
            assert store.end(user) == plain.end(user)
            found, wanted = (outcome(s.window, user, NAMES, **WHOLE) for s in (store, plain))
            if "refused" in (found, wanted):  # a timeline without an event that begins later than 0
                assert found == wanted
            else:
                same_window(found, wanted)
            names = ["age", "name", "x", "y"]
            assert store.request_features(user, names) == plain.request_features(user, names)
            if "refuse" not in str(wanted):
                together = store.fetch(user, NAMES, names, **WHOLE)
                same_window(together.window, wanted)
                assert (together.features, together.failure) == (plain.request_features(user, names), None)


def test_what_arrives_later_never_changes_an_answer(store):
    rng = np.random.default_rng(0)
    cut = HistoryCut(max_events=300)
    seen = {}
    for turn in range(40):
        end = store.append(7, make_events(rng.integers(0, 10**6, int(rng.integers(0, 90)))), key=str(turn)).end
        seen[end] = store.window(7, NAMES, start_of=lambda end: int(cut.start_of(end)))
        for at, window in seen.items():
            same_window(store.window(7, NAMES, start_of=lambda end: int(cut.start_of(end)), at=at), window)


def test_a_correction_leaves_the_earlier_version_as_it_was(store):
    store.append(7, make_events(range(600)), key="a")
    before = store.window(7, NAMES, **WHOLE)
    assert store.correct(7, make_events(range(100, 550)), key="b", start=100) == TimelineEnd(1, 550)
    assert store.append(7, make_events([9]), key="c") == TimelineEnd(1, 551)
    same_window(store.window(7, NAMES, **WHOLE, version=0), before)
    now = store.window(7, ["item_id"], **WHOLE)
    assert (now.start, now.end, now.version) == (100, 551, 1)
    assert now.columns["item_id"].tolist() == [*range(100, 550), 9]


def test_events_whose_place_is_known_are_there_once_however_they_overlap(store):
    for first, last in ((5, 9), (5, 9), (7, CHUNK + 3), (CHUNK + 3, CHUNK + 4), (6, 8)):
        numbers = range(first, last)
        end = store.append(7, make_events(numbers), key=f"{first} {last} {store.end(7)}", stands=TimelineEnd(3, first))
        assert end == store.end(7)
    assert end == TimelineEnd(3, CHUNK + 4)
    found = store.window(7, NAMES, **WHOLE)
    assert found.start == 5
    assert found.columns["item_id"].tolist() == make_events(range(5, CHUNK + 4))["item_id"].tolist()
    for stands in (TimelineEnd(3, CHUNK + 5), TimelineEnd(4, CHUNK + 4)):
        with pytest.raises(ValueError, match=f"with its first {stands.end} events required, found version 3 with"):
            store.append(7, make_events([1]), key=str(stands), stands=stands)
    assert store.end(7) == end


def test_a_key_is_appended_once_whatever_comes_with_it(store):
    first = store.append(7, make_events([1, 2]), key="a")
    store.append(7, make_events([3]), key="b")
    assert store.append(7, make_events([9, 9, 9]), key="a") == first == TimelineEnd(0, 2)
    assert store.end(7) == TimelineEnd(0, 3)
    with pytest.raises(ValueError, match="key of its own required for user 8, found 'a', user 7's"):
        store.append(8, make_events([1]), key="a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": None}, r"the columns \['action', 'dwell', 'item_id', 'ts'\] required, found \['action'"),
        ({"more": np.arange(2)}, "required, found .*'more'"),
        ({"ts": np.arange(2, dtype=np.int32)}, "column ts must be one row of int64, found int32"),
        (
            {"dwell": np.zeros((2, 1), np.float32)},
            r"column dwell must be one row of float32, found .* of shape \(2, 1\)",
        ),
        ({"ts": np.arange(3)}, "columns of one length required, found .*'ts': 3"),
    ],
)
def test_events_that_are_not_the_store_s_are_refused_whole(store, change, message):
    events = {k: v for k, v in {**make_events([1, 2]), **change}.items() if v is not None}
    for write in (store.append, store.correct):
        with pytest.raises(ValueError, match=message):
            write(7, events, key="a")
    assert store.end(7) is None


def test_what_the_store_cannot_answer_is_said(store):
    assert store.window(1, NAMES, **WHOLE) is None
    assert store.end(1) is None
    assert store.request_features(1, ["age"]) == {}
    store.append(7, make_events(range(5)), key="a")
    for ask, message in [
        ({"at": 6}, "at: 0 to 5, the end of the timeline, required, found 6"),
        ({"at": -1}, "found -1"),
        ({"version": 1}, "version: a version of the timeline of user 7 required, found no version 1"),
        ({"start_of": lambda end: end + 1}, r"start_of\(5\) of 0 to 5 required, found 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.window(7, NAMES, **{**WHOLE, **ask})
    with pytest.raises(ValueError, match=r"columns of the store \(item_id, .*found also \['price'\]"):
        store.window(7, ["item_id", "price"], **WHOLE)
    store.correct(8, make_events(range(5)), key="b", start=100)
    with pytest.raises(
        ValueError, match="at: more than 100, the first event that the store holds, required, found 100"
    ):
        store.window(8, NAMES, **WHOLE, at=100)
    empty = store.window(7, NAMES, **WHOLE, at=0)
    assert (empty.start, empty.end) == (0, 0)
    assert all(len(empty.columns[name]) == 0 and empty.columns[name].dtype == COLUMNS[name] for name in NAMES)


def test_features_come_back_as_they_were(store):
    vector = np.array([0.1, np.nan, -np.inf, 3], np.float32)
    features = {
        "embedding": vector,
        "country": "Šeŕ\0",
        "count": 2**62 + 1,
        "ratio": 0.1,
        "single": np.float32(0.1),
        "unknown": math.nan,
        "new": True,
        "gone": None,
        "at": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    }
    store.fill([UserRecord(user_id=7, timelines={0: (0, make_events([1]))}, features=features)], source={})
    found = store.request_features(7, [*features, "absent"])
    assert list(found) == list(features)
    assert found["embedding"].dtype == np.float32
    assert found["embedding"].tobytes() == vector.tobytes()
    assert math.isnan(found["unknown"])
    assert found["at"] == 1_767_323_045_678_901
    assert found["single"] == float(np.float32(0.1))
    for name in ("country", "count", "ratio", "new", "gone"):
        assert found[name] == features[name]
        assert type(found[name]) is type(features[name])
    with pytest.raises(ValueError, match="request feature tags: a plain value or a vector required, found list"):
        store.fill([UserRecord(user_id=7, timelines={}, features={"tags": [1]})], source={"snapshot": 2})
    assert store.filled_from() == {}


def test_a_fill_says_what_it_did_and_keeps_what_was_appended(store):
    def table(**by_user):
        return [
            UserRecord(user_id=int(name[1:]), timelines={0: (start, make_events(numbers))}, features={"age": age})
            for name, (start, numbers, age) in by_user.items()
        ]

    first = store.fill(table(u1=(0, range(10), 5), u2=(300, range(300, 900), 6)), source={"snapshot": 1})
    assert first.counts() == {
        "num_new": 2,
        "num_changed": 0,
        "num_same": 0,
        "num_deleted": 0,
        "num_withheld": 0,
        "num_contradicted": 0,
        "num_events_dropped": 0,
    }
    store.append(1, make_events([10, 11]), key="a")
    store.append(3, make_events([0]), key="b")  # a user whom no table knows yet
    second = store.fill(table(u1=(0, range(11), 5), u4=(0, [], 1)), source={"snapshot": 2})
    assert second.counts() == {
        "num_new": 1,
        "num_changed": 0,
        "num_same": 1,
        "num_deleted": 1,
        "num_withheld": 0,
        "num_contradicted": 0,
        "num_events_dropped": 0,
    }
    assert store.end(1) == TimelineEnd(0, 12)
    assert store.end(2) is None
    assert store.end(3) == TimelineEnd(0, 1)
    assert store.filled_from() == {"snapshot": 2}
    third = store.fill(table(u1=(0, [7, 7], 5), u4=(0, range(3), 1)), source={"snapshot": 3})
    assert third.counts() == {
        "num_new": 0,
        "num_changed": 2,
        "num_same": 0,
        "num_deleted": 0,
        "num_withheld": 0,
        "num_contradicted": 1,
        "num_events_dropped": 10,
    }
    assert store.window(1, ["item_id"], **WHOLE).columns["item_id"].tolist() == [7, 7]


def test_a_user_who_comes_twice_in_a_fill_is_refused_and_nothing_changes(store):
    one = UserRecord(user_id=1, timelines={0: (0, make_events(range(10)))}, features={})
    store.fill([one], source={"snapshot": 1})
    two = UserRecord(user_id=2, timelines={0: (0, make_events(range(10)))}, features={})
    with pytest.raises(ValueError, match="each user once required, found user 2 again"):
        store.fill([one, two, two], source={"snapshot": 2})
    assert store.end(2) is None
    assert store.filled_from() == {"snapshot": 1}


def test_a_deleted_user_stays_deleted_whatever_older_tables_are_filled_from(store):
    """By a fill that was running at the deletion, and by one that begins later from an older snapshot."""
    before_us = now_us()

    def users():
        yield from user_records({1: (0, 5, 0, {"age": 1})})
        store.delete_user(1)  # staged by now, maybe
        store.delete_user(2)  # neither there nor staged
        yield from user_records({2: (0, 5, 0, {"age": 2}), 3: (0, 5, 0, {"age": 3})})

    store.fill(users(), source={"snapshot": 1})
    assert [store.end(user) for user in (1, 2, 3)] == [None, None, TimelineEnd(0, 5)]
    tables = {user: (0, 6, 0, {"age": user}) for user in (1, 2, 3)}
    report = store.fill(user_records(tables), source={"snapshot": 2}, as_of_us=before_us)
    assert (report.num_withheld, report.num_users) == (2, 1)
    assert [store.end(user) for user in (1, 2, 3)] == [None, None, TimelineEnd(0, 6)]
    assert store.request_features(1, ["age"]) == {}
    store.append(1, make_events([70]), key="came back")
    later_us = now_us()
    assert store.fill(user_records(tables), source={"snapshot": 2}, as_of_us=before_us).num_withheld == 2
    assert store.end(1) == TimelineEnd(0, 1)
    store.fill(user_records({2: (0, 6, 0, {"age": 2})}), source={"snapshot": 3}, as_of_us=later_us)
    assert store.end(2) == TimelineEnd(0, 6)
    read = store.fetch(2, NAMES, ["age"], **WHOLE)
    assert (read.features, read.as_of_us) == ({"age": 2}, later_us)


def test_a_deletion_is_never_before_what_the_store_was_filled_from(store):
    """The clock of who deletes may be behind that of who writes tables."""
    ahead_us = now_us() + 3_600_000_000
    one = {1: (0, 5, 0, {"age": 1})}
    store.fill(user_records(one), source={}, as_of_us=ahead_us)
    store.delete_user(1)
    assert store.fill(user_records(one), source={}, as_of_us=ahead_us).num_withheld == 1
    assert store.end(1) is None
