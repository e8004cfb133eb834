"""Where users stand: the file beside a snapshot says what the timeline's events say, or is not believed."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.sequences.batch import advance, check_timeline, compact_timeline
from reqdedup.sequences.definition import EventType, SequenceDefinition
from reqdedup.sequences.standing import Standing
from reqdedup.sequences.timeline import Timeline, open_timeline
from reqdedup.storage.maintenance import expire_snapshots, sweep_orphans
from reqdedup.storage.maintenance.served_rows import delete_served
from tests.sequences.event_lake import deliver, event, lake
from tests.sequences.event_streams import START_US

pytestmark = pytest.mark.slow

ALL = SequenceDefinition(
    name="all", events=[EventType("click"), EventType("view")], columns=["item_id"], last_n=9, owner="tests"
)
CLICKED = SequenceDefinition(name="clicked", events=[EventType("click")], columns=["item_id"], last_n=9, owner="tests")
USERS = pl.Series("user_id", [1, 2, 7, -5, 2**62, 99])


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A timeline of two runs, the second with users of before, new ones and one who is away."""
    catalog = lake(tmp_path)
    of_run(catalog, 0, [1, 2, 7])
    of_run(catalog, 1, [2**62, 7, -5, 2, 2])
    return catalog


def of_run(catalog: Catalog, run: int, users: list[int]) -> None:
    events = [
        event(10 * run + n, START_US + 10 * run + n, user_id=user, event_type="view" if n % 2 else "click")
        for n, user in enumerate(users)
    ]
    deliver(catalog, events, f"run {run}")
    advance(catalog, "lake", [ALL, CLICKED], num_buckets=2)


def files(catalog: Catalog) -> list[Path]:
    """The file of each snapshot that has one, oldest first."""
    summaries = [snapshot.summary or {} for snapshot in catalog.load_table("lake.user_events").snapshots()]
    found = [one.get("reqdedup.derived-file") for one in summaries]
    return [Path(path.removeprefix("file://")) for path in found if path]


def said(catalog: Catalog) -> list[tuple[int, ...]]:
    return sorted(Standing(open_timeline(catalog, "lake")).ends(USERS).rows())


def counted(catalog: Catalog) -> list[tuple[int, ...]]:
    """The same by counting every event of the timeline."""
    timeline = open_timeline(catalog, "lake")
    rows = [one for bucket in range(2) for one in timeline.read(bucket, ["event_type"]).to_pylist()]
    of_all = Counter(row["user_id"] for row in rows)
    of_clicked = Counter(row["user_id"] for row in rows if row["event_type"] == timeline.log.types.index("click"))
    return sorted((user, num, num, of_clicked[user]) for user, num in of_all.items())


def test_the_file_says_where_users_stand_and_no_event_is_read(catalog: Catalog, monkeypatch: pytest.MonkeyPatch):
    required = counted(catalog)
    assert len(required) == 5
    monkeypatch.setattr(Timeline, "read_file", None)
    assert said(catalog) == required
    of_run(catalog, 2, [7, 99])


def test_a_file_that_is_not_the_snapshots_is_made_again(catalog: Catalog):
    required, (before, now) = counted(catalog), files(catalog)
    data, column = now.read_bytes(), pq.read_metadata(now).row_group(0).column(1)
    last = column.data_page_offset + column.total_compressed_size - 1
    events = data.index(b"reqdedup.events") + len(b"reqdedup.events") + 2
    assert data[events : events + 1] == b"8"
    for damaged in (
        None,
        before.read_bytes(),
        data[:-9],
        data[:last] + bytes([data[last] ^ 1]) + data[last + 1 :],
        data[:events] + b"9" + data[events + 1 :],
    ):
        now.unlink(missing_ok=True)
        if damaged is not None:
            now.write_bytes(damaged)
            assert damaged != data
        assert said(catalog) == required
    of_run(catalog, 2, [7, 99, 1])
    assert said(catalog) == counted(catalog)
    assert check_timeline(open_timeline(catalog, "lake")) == 11


def test_after_a_compaction_the_next_run_writes_the_file_again(catalog: Catalog):
    compact_timeline(catalog, "lake")
    assert len(files(catalog)) == 2
    of_run(catalog, 2, [7, 99, 1])
    assert len(files(catalog)) == 3
    assert said(catalog) == counted(catalog)


def test_a_deleted_user_is_in_no_file_once_old_snapshots_are_gone(catalog: Catalog, tmp_path: Path):
    table = catalog.load_table("lake.user_events")
    delete_served(table, np.array([7]), np.array([], np.int64))
    assert expire_snapshots(table, older_than=timedelta(0)).files["derived"] == 2
    assert not list(tmp_path.rglob("*standing.parquet"))
    of_run(catalog, 2, [2, 99])
    assert said(catalog) == counted(catalog)
    assert sorted(pq.read_table(files(catalog)[0])["user_id"].to_pylist()) == [-5, 1, 2, 99, 2**62]


def test_a_sweep_leaves_the_file_of_a_snapshot_and_does_without_it(catalog: Catalog):
    table, now = catalog.load_table("lake.user_events"), files(catalog)[-1]
    lost = now.with_name("0-standing.parquet")
    lost.write_bytes(now.read_bytes())
    sweep_orphans(table, older_than=timedelta(0), dry_run=False)
    assert (now.exists(), lost.exists()) == (True, False)
    now.unlink()
    sweep_orphans(table, older_than=timedelta(0), dry_run=False)  # a file of another kind that is lost would stop it
