"""kill -9 at any step of `append_events`, `advance`, `backfill` and `put`: run again, nothing is lost or twice."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog, load_catalog

from reqdedup.sequences.batch import advance, check_timeline
from reqdedup.sequences.online import open_online
from reqdedup.sequences.speed import WriteAheadFile, batches_of
from reqdedup.sequences.tables import delivered_of, load_raw
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage.maintenance import sweep_orphans
from reqdedup.storage.maintenance.served_rows import EVENT_TABLES, delete_served
from tests.sequences import killed_run

ROOT = Path(__file__).parents[2]


def catalog_at(folder: Path) -> Catalog:
    return load_catalog("t", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


def run_until_killed(folder: Path, step: int, scenario: str = "run") -> bool:
    """Whether the run came to its end before it was killed at this step."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.sequences.killed_run", str(folder), str(step), scenario],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert found.returncode in (0, -signal.SIGKILL)
    return found.returncode == 0


def check_all_there(folder: Path) -> None:
    catalog = catalog_at(folder)
    killed_run.run(catalog, folder)
    timeline = open_timeline(catalog, "lake")
    assert check_timeline(timeline) == killed_run.NUM_EVENTS
    ids = pa.concat_tables([timeline.read(bucket, ["event_id"]) for bucket in range(timeline.num_buckets)])
    assert sorted(ids.column("event_id").to_pylist()) == list(range(killed_run.NUM_EVENTS))
    assert delivered_of(load_raw(catalog, "lake")).next_position == killed_run.NUM_EVENTS + 1
    rejected = catalog.load_table("lake.rejected_events").scan().to_arrow()
    assert rejected.column("position").to_pylist() == [killed_run.NUM_EVENTS // 2]
    store = open_online(folder / "online", catalog, "lake")
    fetched = [store.fetch(user, "all")["event_id"] for user in range(killed_run.NUM_USERS)]
    assert np.array_equal(np.sort(np.concatenate(fetched)), np.arange(killed_run.NUM_EVENTS))
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("step", [9])
def test_a_killed_run_is_made_good_by_the_next(tmp_path: Path, step: int):
    run_until_killed(tmp_path, step)
    check_all_there(tmp_path)


@pytest.mark.soak
def test_kills_at_random_steps_are_made_good_by_the_next(tmp_path: Path):
    chance = random.Random(12)
    for number in range(24):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _ in range(chance.randint(1, 4)):
            run_until_killed(folder, chance.randint(1, 40))
        check_all_there(folder)


def check_versions(folder: Path) -> None:
    """Run again, it ends as a run that nobody killed."""
    catalog = catalog_at(folder)
    killed_run.run_versions(catalog, folder)
    timeline = open_timeline(catalog, "lake")
    assert (timeline.state.version, check_timeline(timeline)) == (4, killed_run.NUM_EVENTS)
    found = pa.concat_tables([timeline.read(bucket, ["event_id", "country"]) for bucket in range(2)])
    kept = found.filter(pc.is_valid(found.column("country")))
    assert sorted(kept.column("event_id").to_pylist()) == list(range(killed_run.NUM_EVENTS // 2, killed_run.NUM_EVENTS))
    assert set(kept.column("country").to_pylist()) == {2}
    assert load_raw(catalog, "lake").scan().count() == killed_run.NUM_EVENTS // 2


@pytest.mark.slow
def test_a_killed_backfill_is_made_good_by_the_next(tmp_path: Path):
    killed_run.start_versions(catalog_at(tmp_path))
    assert not run_until_killed(tmp_path, 8, "run_versions")
    check_versions(tmp_path)


@pytest.mark.soak
def test_a_backfill_that_is_killed_at_any_step_is_made_good_by_the_next(tmp_path: Path):
    place, saved = tmp_path / "place", tmp_path / "saved"
    place.mkdir()
    killed_run.start_versions(catalog_at(place))
    shutil.copytree(place, saved)
    step, is_done = 0, False
    while not is_done:
        shutil.rmtree(place)
        shutil.copytree(saved, place)
        step += 1
        is_done = run_until_killed(place, step, "run_versions")
        check_versions(place)
    assert step > 15


def check_deletion(folder: Path) -> None:
    """Run again and swept, it ends as a run that nobody killed: user 1 is in no file, the others are as they were."""
    catalog = catalog_at(folder)
    killed_run.run_deletion(catalog, folder)
    timeline = open_timeline(catalog, "lake")
    assert check_timeline(timeline) == load_raw(catalog, "lake").scan().count() == killed_run.NUM_EVENTS * 2 // 3
    users = []
    for table in (catalog.load_table(f"lake.{name}") for name in EVENT_TABLES):
        sweep_orphans(table, older_than=timedelta(0), dry_run=False)
        files = Path(table.location().removeprefix("file://")).rglob("*.parquet")
        users += [pq.read_table(path, columns=["user_id"])["user_id"] for path in files]
    views = list((folder / "online").glob("view-*"))
    assert len(views) == 1
    kept = [pa.chunked_array([np.load(views[0] / "user_id.npy")])]
    kept += [batch["user_id"].to_arrow() for batch in batches_of(folder / "online" / "delivered.wal")]
    assert {user for of in (*users, *kept) for user in of.to_pylist()} == {0, 2, None}
    store = open_online(folder / "online", catalog, "lake")
    num_put = killed_run.NUM_EVENTS // killed_run.NUM_USERS + 2
    assert [len(store.fetch(user, "all")["event_id"]) for user in (0, 1, 2)] == [num_put, 0, num_put]
    store.close()


@pytest.mark.slow
def test_a_killed_deletion_is_made_good_by_the_next(tmp_path: Path):
    killed_run.start_deletion(catalog_at(tmp_path), tmp_path)
    assert not run_until_killed(tmp_path, 12, "run_deletion")
    check_deletion(tmp_path)


@pytest.mark.soak
def test_a_deletion_that_is_killed_at_any_step_is_made_good_by_the_next(tmp_path: Path):
    place, saved = tmp_path / "place", tmp_path / "saved"
    place.mkdir()
    killed_run.start_deletion(catalog_at(place), place)
    shutil.copytree(place, saved)
    step, is_done = 0, False
    while not is_done:
        shutil.rmtree(place)
        shutil.copytree(saved, place)
        step += 1
        is_done = run_until_killed(place, step, "run_deletion")
        check_deletion(place)
    assert step > 15


def test_a_torn_frame_is_cut_off_and_what_was_confirmed_stays(tmp_path: Path):
    frame = killed_run.numbered(0, 5)
    log = WriteAheadFile(tmp_path / "wal")
    log.append(frame.head(2))
    whole = (tmp_path / "wal").stat().st_size
    log.append(frame.tail(3))
    log.close()
    data = (tmp_path / "wal").read_bytes()
    for size in (whole, whole + 3, whole + 9, len(data) - 1):
        (tmp_path / "wal").write_bytes(data[:size])
        again = WriteAheadFile(tmp_path / "wal")
        assert [len(one) for one in again.batches()] == [2]
        again.append(frame.tail(3))
        assert [len(one) for one in again.batches()] == [2, 3]
        again.close()
    (tmp_path / "wal").write_bytes(data[: whole + 20] + b"\0" + data[whole + 21 :])
    assert [len(one) for one in WriteAheadFile(tmp_path / "wal").batches()] == [2]


def test_what_is_confirmed_after_a_disk_was_full_is_not_lost(tmp_path: Path):
    frame, limits = killed_run.numbered(0, 5), resource.getrlimit(resource.RLIMIT_FSIZE)
    log = WriteAheadFile(tmp_path / "wal")
    log.append(frame.head(1))
    room = (tmp_path / "wal").stat().st_size + 20
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            log.append(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "wal").stat().st_size == room, "half a frame"
    log.append(frame.tail(2))
    log.append(frame.head(3))
    log.close()
    assert [len(one) for one in WriteAheadFile(tmp_path / "wal").batches()] == [1, 2, 3]


@pytest.mark.slow
def test_putting_a_batch_again_changes_nothing(tmp_path: Path):
    catalog = catalog_at(tmp_path)
    killed_run.run(catalog, tmp_path)
    advance(catalog, "lake")
    store = open_online(tmp_path / "online", catalog, "lake")
    more = killed_run.numbered(killed_run.NUM_EVENTS + 1, 4)
    assert store.put(more.head(2)) == 2
    assert store.put(more) == 2
    assert store.put(more) == 0
    before = store.fetch(1, "all")
    store.close()
    again = open_online(tmp_path / "online", catalog, "lake")
    assert {n: v.tobytes() for n, v in again.fetch(1, "all").items()} == {n: v.tobytes() for n, v in before.items()}
    again.close()


@pytest.mark.slow
def test_a_deleted_user_is_in_no_table_view_or_file(tmp_path: Path):
    catalog = catalog_at(tmp_path)
    killed_run.run(catalog, tmp_path)
    store = open_online(tmp_path / "online", catalog, "lake")
    store.put(killed_run.numbered(killed_run.NUM_EVENTS + 1, 6))
    for name in EVENT_TABLES:
        delete_served(catalog.load_table(f"lake.{name}"), np.array([1]), np.array([], np.int64))
    store.delete_users([1])
    assert len(store.fetch(1, "all")["event_id"]) == 0
    assert len(store.fetch(2, "all")["event_id"]) == killed_run.NUM_EVENTS // killed_run.NUM_USERS + 2
    assert all(1 not in one["user_id"] for one in WriteAheadFile(tmp_path / "online" / "delivered.wal").batches())
    store.close()
    assert check_timeline(open_timeline(catalog, "lake")) == killed_run.NUM_EVENTS * 2 // 3
    assert advance(catalog, "lake").counts.num_delivered == 0
