"""What only an embedded store has: processes that are killed, threads beside one another, a file that is not ours."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reqdedup.sequences import sqlite_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import StoreUnavailableError, TimelineEnd, UserRecord
from tests.sequences.plain_store import COLUMNS, make_events

WHOLE = {"start_of": lambda end: 0}


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "store.sqlite", COLUMNS)
    yield store
    store.close()


def record(user_id, numbers, **features):
    start = numbers[0] if len(numbers) else 0
    return UserRecord(user_id=user_id, timelines={0: (start, make_events(numbers))}, features=features)


def test_a_user_who_is_deleted_while_a_fill_runs_does_not_come_back(store, monkeypatch):
    monkeypatch.setattr(sqlite_store, "FILL_TOGETHER", 1)
    store.fill([record(7, range(5), a=1), record(8, range(5), a=1)], source={})

    def users():
        yield record(7, range(9), a=2)
        yield record(8, range(9), a=2)
        assert store.delete_user(7)  # staged by now

    store.fill(users(), source={})
    assert (store.end(7), store.request_features(7, ["a"])) == (None, {})
    assert (store.end(8).end, store.request_features(8, ["a"])) == (9, {"a": 2})
    store.fill([record(8, range(9), a=2)], source={})
    with store._file.connection() as connection:
        kept = "SELECT count(*) FROM chunks WHERE timeline NOT IN (SELECT id FROM timelines)"
        assert connection.execute(kept).fetchone() == (0,)


def test_a_deleted_user_is_in_no_file_of_a_store_that_a_server_has_open(store):
    store.fill([record(7, range(5), a="of the user 7"), record(8, range(5), a="of the user 8")], source={})
    files = [store.path, store.path.with_name(f"{store.path.name}-wal")]
    assert b"of the user 7" in b"".join(file.read_bytes() for file in files)
    with closing(SqliteStore(store.path)) as another:
        assert another.delete_user(7)
    assert b"of the user 7" not in b"".join(file.read_bytes() for file in files)
    assert (store.end(7), store.request_features(8, ["a"])) == (None, {"a": "of the user 8"})


APPEND_FOREVER = """
import sys, numpy as np
from reqdedup.sequences.sqlite_store import SqliteStore
from tests.sequences.plain_store import make_events
store = SqliteStore(sys.argv[1])
for turn in range(10**9):
    end = store.append(7, make_events(range(turn * 3, turn * 3 + 3)), key=str(turn))
    print(turn, end.end, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_appends_and_the_replay_adds_none_twice(store):
    for _ in range(3):
        command = [sys.executable, "-c", APPEND_FOREVER, str(store.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            said = [process.stdout.readline() for _ in range(40)]
            process.send_signal(signal.SIGKILL)
            said += process.stdout.readlines()
        acknowledged = int(said[-1].split()[0]) if said[-1].endswith("\n") else int(said[-2].split()[0])
        end = store.end(7).end
        assert end % 3 == 0
        assert end >= 3 * (acknowledged + 1)
        window = store.window(7, ["item_id"], **WHOLE)
        assert window.columns["item_id"].tolist() == list(range(end))


def fill_half(path):
    store = SqliteStore(path)

    def users():
        yield from (record(user, range(300), age=2) for user in range(600))
        os.kill(os.getpid(), signal.SIGKILL)

    store.fill(users(), source={"snapshot": 2})


@pytest.mark.slow
def test_a_killed_fill_shows_nothing_and_the_next_one_cleans_up(store):
    store.fill([record(user, range(10), age=1) for user in range(700)], source={"snapshot": 1})
    process = multiprocessing.get_context("fork").Process(target=fill_half, args=(store.path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert all(store.end(user) == TimelineEnd(0, 10) for user in range(0, 700, 50))
    assert store.filled_from() == {"snapshot": 1}
    report = store.fill([record(user, range(11), age=1) for user in range(700)], source={"snapshot": 2})
    assert report.num_changed == 700
    with sqlite3.connect(store.path) as connection:
        (num_chunks,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert num_chunks == 700


@pytest.mark.slow
def test_readers_see_a_fill_whole_or_not_at_all(store, monkeypatch):
    monkeypatch.setattr(sqlite_store, "FILL_TOGETHER", 16)
    users = range(200)
    store.fill([record(user, range(10), age=0) for user in users], source={"turn": 0})
    mixed, done = [], threading.Event()

    def read():
        while not done.is_set():
            # The one asked later must be as new as the one asked before.
            first, last = (store.end(user).end for user in (199, 0))
            if last < first:
                mixed.append((first, last))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(1, 6):
        store.fill([record(user, range(10 + turn), age=turn) for user in users], source={"turn": turn})
    done.set()
    for reader in readers:
        reader.join()
    assert not mixed
    assert {store.end(user).end for user in users} == {15}


def test_events_that_arrive_while_a_fill_runs_are_kept(store):
    store.append(1, make_events(range(5)), key="before")

    def users():
        yield from (record(user, range(8)) for user in range(sqlite_store.FILL_TOGETHER))
        # User 1 is staged by now, with 8 events: the table has 5 to 7 too.
        store.append(1, make_events(range(5, 20)), key="during")
        store.append(999, make_events(range(3)), key="new")
        yield record(999, range(2))

    report = store.fill(users(), source={})
    assert report.num_contradicted == 0
    assert store.window(1, ["item_id"], **WHOLE).columns["item_id"].tolist() == list(range(20))
    assert store.end(999) == TimelineEnd(0, 3)


def test_threads_and_processes_append_to_one_timeline_without_losing_an_event(store):
    def append(writer):
        own = store if writer == "thread" else SqliteStore(store.path, timeout_s=20)
        for turn in range(40):
            own.append(7, make_events([turn]), key=f"{writer} {turn}")
            own.window(7, ["item_id"], **WHOLE)

    store._file.timeout_s = 20  # the machine is shared
    processes = [multiprocessing.get_context("fork").Process(target=append, args=(f"p{n}",)) for n in range(2)]
    threads = [threading.Thread(target=append, args=(name,)) for name in ("thread", "other")]
    for one in [*processes, *threads]:
        one.start()
    for one in [*processes, *threads]:
        one.join()
    assert [one.exitcode for one in processes] == [0, 0]
    items = store.window(7, ["item_id"], **WHOLE).columns["item_id"]
    assert np.bincount(items).tolist() == [4] * 40


def test_a_store_that_is_held_by_another_writer_says_so_in_time(store):
    store.append(7, make_events([1]), key="a")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    impatient = SqliteStore(store.path, timeout_s=0.1)
    before = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"an answer within 0.1 s required, database is locked"):
        impatient.append(7, make_events([2]), key="b")
    assert time.monotonic() - before < 5
    assert impatient.end(7) == TimelineEnd(0, 1)  # readers do not wait
    other.execute("ROLLBACK")
    assert impatient.append(7, make_events([2]), key="b") == TimelineEnd(0, 2)


def test_a_second_fill_at_once_is_refused(store):
    def users():
        yield record(1, range(3))
        with pytest.raises(ValueError, match="one fill at a time required"):
            SqliteStore(store.path).fill([], source={})

    store.fill(users(), source={"snapshot": 1})
    assert store.filled_from() == {"snapshot": 1}
    assert not list(store.path.parent.glob("*.filling"))


def test_the_right_to_fill_is_not_that_of_a_file_which_an_ended_fill_took_away(store, monkeypatch):
    lock, real = Path(f"{store.path}.filling"), fcntl.flock
    ended = iter([True])

    def flock(file, how):  # the other fill ends between our opening of its file and our lock
        if next(ended, False):
            lock.unlink()
        real(file, how)

    def users():
        with pytest.raises(ValueError, match="one fill at a time required"):
            SqliteStore(store.path).fill([], source={})
        yield record(1, range(3))

    monkeypatch.setattr(fcntl, "flock", flock)
    store.fill(users(), source={"snapshot": 1})
    assert not lock.exists()


def test_a_file_that_is_not_this_store_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match=r"events of .*'price'.* required, found a store of .*'item_id'"):
        SqliteStore(store.path, {"price": "float32"})
    with pytest.raises(ValueError, match=r"none.sqlite: a file required, found none"):
        SqliteStore(tmp_path / "none.sqlite")
    with pytest.raises(ValueError, match=r"columns of a store: .* required, found \{'name': 'string'\}"):
        SqliteStore(tmp_path / "none.sqlite", {"name": "string"})
    (tmp_path / "text.sqlite").write_text("no database at all" * 100)
    with pytest.raises(ValueError, match="a file of `reqdedup store fill` required, found another kind"):
        SqliteStore(tmp_path / "text.sqlite")


def test_keys_are_forgotten_beyond_their_number(store, monkeypatch):
    monkeypatch.setattr(sqlite_store, "KEYS_KEPT", 10)
    for turn in range(30):
        store.append(7, make_events([turn]), key=str(turn))
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("SELECT count(*) FROM appended").fetchone() == (10,)


def test_an_append_to_a_file_that_was_removed_is_refused_not_lost(tmp_path):
    path = tmp_path / "store.db"
    store = SqliteStore(path, COLUMNS)
    store.append(7, make_events([1]), key="a")
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in tmp_path.glob("store.db*"):
        file.rename(aside / file.name)
    with pytest.raises(StoreUnavailableError, match="its file required, found No such file"):
        store.append(7, make_events([2]), key="b")
    with pytest.raises(StoreUnavailableError, match="its file required"):
        store.end(7)
    for file in aside.iterdir():
        file.rename(tmp_path / file.name)
    assert store.append(7, make_events([2]), key="b").end == 2


def test_a_file_in_the_place_of_another_is_the_store_from_then_on(tmp_path):
    path, other = tmp_path / "store.db", tmp_path / "other.db"
    store, filled = SqliteStore(path, COLUMNS), SqliteStore(other, COLUMNS)
    store.append(7, make_events([1]), key="a")
    filled.append(7, make_events([1, 2, 3]), key="a")
    store.close()
    filled.close()
    other.replace(path)
    assert store.end(7) == TimelineEnd(0, 3)


def test_a_file_without_deleted_users_gets_them_when_it_is_opened(tmp_path):
    path = tmp_path / "old.sqlite"
    with closing(SqliteStore(path, COLUMNS)) as store:
        store.append(7, make_events(range(3)), key="a")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE deleted; UPDATE meta SET value = '1' WHERE name = 'format';")
    for _ in range(2):
        with closing(SqliteStore(path, COLUMNS)) as store:
            assert store.end(7).end == 3
            store.delete_user(8)
