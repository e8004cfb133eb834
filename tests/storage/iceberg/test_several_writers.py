"""Several processes write one table at once: no row is lost, none is there twice, and a reader keeps its snapshot."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from pathlib import Path

import pytest

from reqdedup.storage import TableSource, write
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.maintenance import compact, delete_user, expire_snapshots
from reqdedup.storage.measure import checks
from tests.storage.maintenance.killed import LOG, NOW, main_table, new_table
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import make_log, to_batches
from tests.storage.tables import rows_of

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.storage.maintenance.killed"])
APPENDERS, APPENDS = 3, 3


def part(writer: int, number: int) -> list[dict]:
    return make_log(num_users=3, seed=100 + 10 * writer + number)


def append_all(folder: str, writer: int) -> None:
    for number in range(APPENDS):
        write(main_table(Path(folder)), to_batches(part(writer, number)), mode="append")


def compact_until(folder: str, stop) -> None:
    while not stop.is_set():
        with contextlib.suppress(ConflictError):  # refused, which is allowed; but never wrong
            compact(main_table(Path(folder)))


def delete_one(folder: str, user: int) -> None:
    delete_user(main_table(Path(folder)), user)


@pytest.mark.slow
@pytest.mark.parametrize("num_compactors", [1, 2])
def test_appends_compactions_and_a_deletion_at_once(tmp_path, num_compactors):
    table = new_table(tmp_path)
    write(table, to_batches(LOG))
    first = TableSource(table)
    before = checks.content_checksum(first)
    gone = LOG[0]["user_id"]
    stop = FORKS.Event()
    appenders = [FORKS.Process(target=append_all, args=(str(tmp_path), writer)) for writer in range(APPENDERS)]
    compactors = [FORKS.Process(target=compact_until, args=(str(tmp_path), stop)) for _ in range(num_compactors)]
    deleter = FORKS.Process(target=delete_one, args=(str(tmp_path), gone))
    for process in (*appenders, *compactors, deleter):
        process.start()
    for process in (*appenders, deleter):
        process.join(120)
    stop.set()
    for process in compactors:
        process.join(120)
    assert [process.exitcode for process in (*appenders, deleter, *compactors)] == [0] * (
        APPENDERS + 1 + num_compactors
    )
    assert checks.content_checksum(first) == before  # the reader's snapshot, all the while

    table = main_table(tmp_path)
    log = [request for request in LOG if request["user_id"] != gone]
    log += [request for writer in range(APPENDERS) for number in range(APPENDS) for request in part(writer, number)]
    assert rows_of(TableSource(table).batches()) == rows_of(to_batches(log))
    compact(table)
    assert checks.requests_whole(table).ok
    expire_snapshots(table, older_than=NOW)
    assert needed_by(table) <= on_disk(table)


@pytest.mark.slow
def test_a_replacement_that_others_overtake_is_a_clear_error_and_changes_nothing(tmp_path):
    table = new_table(tmp_path)
    write(table, to_batches(LOG))
    late = make_log(num_users=2, seed=7)

    def batches():
        yield from to_batches(make_log(num_users=2, seed=8))
        write(main_table(tmp_path), to_batches(late), mode="append")
        time.sleep(0.01)

    with pytest.raises(ConflictError, match=r"another writer changed the table.*repeat the write"):
        write(table, batches())
    assert rows_of(TableSource(main_table(tmp_path)).batches()) == rows_of(to_batches(LOG + late))
