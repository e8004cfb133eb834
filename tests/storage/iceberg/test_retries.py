"""Commits at the same moment: every append lands, and so do the rejects of ingests into one namespace."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pytest

from reqdedup.storage import TableSource, write, write_rejects
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.retries import CommitRetries
from tests.storage.maintenance.killed import LOG, main_table, new_table
from tests.storage.small_log import make_log, to_batches
from tests.storage.tables import rows_of

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.storage.maintenance.killed"])
REASONS = {"detail": "", "file": "a.csv", "line": 1, "raw": ""}


def part(writer: int) -> list[dict]:
    return make_log(num_users=2, seed=100 + writer)


def append_with_all(folder: str, writer: int, barrier) -> None:
    def batches():
        yield from to_batches(part(writer))
        barrier.wait(60)

    write(main_table(Path(folder)), batches(), mode="append")


def reject_with_all(folder: str, writer: int, barrier) -> None:
    catalog = main_table(Path(folder)).catalog
    rows = pa.Table.from_pylist([{"reason": "time", **REASONS}] * (writer + 1))
    barrier.wait(60)
    write_rejects(catalog, "test.rejected_engagements", rows, of=f"test.t{writer}")


def run_together(target, folder: Path, count: int) -> None:
    barrier = FORKS.Barrier(count)
    writers = [FORKS.Process(target=target, args=(str(folder), writer, barrier)) for writer in range(count)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(240)
    assert [process.exitcode for process in writers] == [0] * count


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, pytest.param(24, marks=pytest.mark.soak)])
def test_appends_at_the_same_moment_all_land(tmp_path, count):
    write(new_table(tmp_path), to_batches(LOG))
    run_together(append_with_all, tmp_path, count)
    log = LOG + [request for writer in range(count) for request in part(writer)]
    table = main_table(tmp_path)
    assert rows_of(TableSource(table).batches()) == rows_of(to_batches(log))
    assert len(table.metadata.snapshots) == 1 + count


@pytest.mark.slow
def test_rejects_of_ingests_at_the_same_moment_stay_side_by_side(tmp_path):
    catalog = new_table(tmp_path).catalog
    for writer in range(3):
        catalog.create_table(f"test.t{writer}", pa.schema([pa.field("n", pa.int64())]))
    run_together(reject_with_all, tmp_path, 3)
    rows = catalog.load_table("test.rejected_engagements").scan().to_arrow().to_pylist()
    assert sorted(row["table_name"] for row in rows) == ["test.t0", *["test.t1"] * 2, *["test.t2"] * 3]


def overtaken(folder: Path):
    yield from to_batches(part(1))
    write(main_table(folder), to_batches(part(2)), mode="append")


def test_a_table_says_how_often_its_commits_are_repeated(tmp_path):
    table = new_table(tmp_path)
    table.transaction().set_properties({"commit.retry.num-retries": "0"}).commit_transaction()
    with pytest.raises(ConflictError, match=r"0 repetitions \(table property commit\.retry\.num-retries\) later"):
        write(table, overtaken(tmp_path), mode="append")
    table.transaction().set_properties({"commit.retry.num-retries": "1"}).commit_transaction()
    write(table, overtaken(tmp_path), mode="append")
    log = part(2) + part(1) + part(2)
    assert rows_of(TableSource(main_table(tmp_path)).batches()) == rows_of(to_batches(log))


def test_a_replacement_is_not_stopped_by_a_change_that_leaves_the_rows_alone(tmp_path):
    table = new_table(tmp_path)
    write(table, to_batches(LOG))

    def batches():
        yield from to_batches(part(1))
        main_table(tmp_path).transaction().set_properties({"owner": "someone"}).commit_transaction()

    write(table, batches())
    assert rows_of(TableSource(main_table(tmp_path)).batches()) == rows_of(to_batches(part(1)))
    assert main_table(tmp_path).properties["owner"] == "someone"
    assert "commit.retry.num-retries" not in main_table(tmp_path).properties


@pytest.mark.parametrize("text", ["-1", "many", "1.5", ""])
def test_a_count_that_is_none_is_refused_by_the_property(text):
    with pytest.raises(ValueError, match=r"commit\.retry\.num-retries: a whole number from 0 required, found"):
        CommitRetries.of({"commit.retry.num-retries": text})


def test_waits_are_drawn_below_a_limit_that_doubles_up_to_the_longest(monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    retries = CommitRetries(min_wait_ms=100, max_wait_ms=1_000)
    for attempt in (0, 1, 2, 3, 4, 1_000):
        waits.clear()
        for _ in range(200):
            retries.wait(attempt)
        limit = min(1.0, 0.1 * 2 ** min(attempt, 10))
        assert 0 <= min(waits) < 0.2 * limit
        assert 0.8 * limit < max(waits) <= limit
