"""What only a server has: it hangs, it dies, it comes back, and others append while it is filled."""

from __future__ import annotations

import time
import uuid

import pytest

from reqdedup.sequences.store import StoreUnavailableError, TimelineEnd, UserRecord
from reqdedup.sequences.valkey_store import ValkeyStore
from tests.sequences.plain_store import COLUMNS, make_events
from tests.servers.process import LOOPBACK, free_ports
from tests.servers.valkey import start_valkey

pytestmark = pytest.mark.servers
WHOLE = {"start_of": lambda end: 0}


def record(user_id, numbers, **features):
    start = numbers[0] if len(numbers) else 0
    return UserRecord(user_id=user_id, timelines={0: (start, make_events(numbers))}, features=features)


@pytest.fixture
def store(valkey_server):
    return ValkeyStore(valkey_server.url, COLUMNS, name=uuid.uuid4().hex, timeout_s=20)


def test_a_store_that_hangs_says_so_in_time_and_works_again_when_it_is_back(valkey_server, store):
    store.append(7, make_events(range(3)), key="a")
    impatient = ValkeyStore(valkey_server.url, name=store.name, timeout_s=0.2)
    valkey_server.server.pause()
    try:
        for call in (
            lambda: impatient.window(7, ["item_id"], **WHOLE),
            lambda: impatient.end(7),
            lambda: impatient.request_features(7, ["age"]),
            lambda: impatient.append(7, make_events([3]), key="b"),
        ):
            before = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"an answer within 0.2 s required"):
                call()
            assert time.monotonic() - before < 2
    finally:
        valkey_server.server.resume()
    # Whether the append that got no answer was done cannot be known: its key makes asking again safe.
    assert store.append(7, make_events([3]), key="b") == TimelineEnd(0, 4)
    assert impatient.end(7) == TimelineEnd(0, 4)


def test_a_store_that_is_not_there_says_so(tmp_path):
    with pytest.raises(StoreUnavailableError, match="an answer within"):
        ValkeyStore(f"valkey://{LOOPBACK}:{free_ports(1)[0]}/0", COLUMNS)


def test_a_server_that_dies_says_so_to_who_asks_next(tmp_path):
    running = start_valkey(tmp_path)
    store = ValkeyStore(running.url, COLUMNS)
    store.append(7, make_events([1]), key="a")
    running.server.stop()
    with pytest.raises(StoreUnavailableError):
        store.end(7)


def test_events_that_arrive_while_a_fill_runs_are_kept(store):
    store.append(1, make_events(range(5)), key="before")
    store.append(3, make_events(range(5)), key="other")

    def users():
        yield record(1, range(8))
        yield record(2, range(3))
        yield record(3, range(8))
        # Users 1 and 3 are staged by now, with 8 events: the table has 5 to 7 too.
        store.append(1, make_events(range(5, 20)), key="during")
        store.append(3, make_events([5]), key="during too")
        store.append(999, make_events(range(3)), key="new")
        yield record(999, range(2))

    report = store.fill(users(), source={})
    assert report.num_contradicted == 0
    assert store.window(1, ["item_id"], **WHOLE).columns["item_id"].tolist() == list(range(20))
    assert store.end(3) == TimelineEnd(0, 8)
    assert store.end(999) == TimelineEnd(0, 3)


def test_a_user_who_is_deleted_while_a_fill_runs_does_not_come_back(store):
    store.fill([record(7, range(5), a=1), record(8, range(5), a=1)], source={})

    def users():
        yield record(7, range(9), a=2)
        yield record(8, range(9), a=2)
        assert store.delete_user(7)

    store.fill(users(), source={})
    assert (store.end(7), store.request_features(7, ["a"])) == (None, {})
    assert (store.end(8).end, store.request_features(8, ["a"])) == (9, {"a": 2})


def test_a_fill_that_fails_shows_nothing_and_lets_the_next_begin(store):
    store.fill([record(1, range(3), age=1)], source={"snapshot": 1})

    def users():
        yield record(1, range(9), age=2)
        with pytest.raises(ValueError, match="one fill at a time required"):
            store.fill([], source={})
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.fill(users(), source={"snapshot": 2})
    assert store.end(1) == TimelineEnd(0, 3)
    assert store.request_features(1, ["age"]) == {"age": 1}
    assert store.filled_from() == {"snapshot": 1}
    assert store.fill([record(1, range(9), age=2)], source={"snapshot": 2}).num_changed == 1


def test_a_fill_that_lost_its_turn_shows_nothing_and_leaves_the_turn_of_another(store):
    turn = f"{store.name}:filling"

    def users():
        yield record(1, range(3), age=1)
        store._client.delete(turn)  # as when it has stood still for FILL_LOCK_S
        store.fill([record(1, range(5), age=5)], source={"snapshot": 2})
        store._client.set(turn, "another")

    with pytest.raises(StoreUnavailableError, match="lost its turn; nothing of it is shown, fill again"):
        store.fill(users(), source={"snapshot": 1})
    assert (store.end(1), store.request_features(1, ["age"])) == (TimelineEnd(0, 5), {"age": 5})
    assert store.filled_from() == {"snapshot": 2}
    assert store._client.get(turn) == b"another"


def test_a_store_of_other_columns_or_none_is_refused(valkey_server, store):
    with pytest.raises(ValueError, match=r"events of .*'price'.* required, found a store of .*'item_id'"):
        ValkeyStore(valkey_server.url, {"price": "float32"}, name=store.name)
    with pytest.raises(ValueError, match="a store required, found none"):
        ValkeyStore(valkey_server.url, name="nobody")
