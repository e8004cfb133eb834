"""A deleted user is gone: from every table, from what every other engine reads, and after expiry from the bytes on disk."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    write,
)
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.maintenance import compact, delete_user, expire_snapshots, sweep_orphans
from reqdedup.storage.measure import checks
from tests.storage.feature_tables import COUNT, SEQUENCE, constant, of_request
from tests.storage.maintenance import searched_bytes
from tests.storage.maintenance.marked_user import HISTORY, LOG, MARKED, NEEDLES, OTHERS
from tests.storage.small_log import log_schema, make_log, make_request, to_batches
from tests.storage.tables import files_of, rows_of

NOW = timedelta(0)


def table_of(catalog, layout):
    table = create_table(catalog, f"test.{layout.value}", log_schema(), layout, num_buckets=4)
    write(table, to_batches(LOG))
    return table


def bytes_of(folder: Path) -> dict[str, set[str]]:
    return searched_bytes.bytes_of(folder, NEEDLES)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_nothing_of_the_user_is_left_on_disk(catalog, layout):
    table = table_of(catalog, layout)
    folder = Path(table.location().removeprefix("file://"))
    before = bytes_of(folder)
    assert before["parquet"] == set(NEEDLES)  # the search does find it
    assert "user id" in before["manifests"] or not layout.is_bucketed
    (report,) = delete_user(table, MARKED)
    assert (report.rows, report.requests) == (8, 2)
    assert rows_of(TableSource(table).batches()) == rows_of(to_batches(OTHERS))
    assert bytes_of(folder)["parquet"] == set(NEEDLES)  # old snapshots still have it
    expire_snapshots(table, older_than=NOW)
    time.sleep(0.05)
    sweep_orphans(table, older_than=NOW, dry_run=False)
    assert bytes_of(folder) == {"raw": set(), "manifests": set(), "parquet": set()}
    paths = [str(path) for path in folder.rglob("*.parquet")]
    assert duckdb.sql(f"select count(*) from read_parquet({paths}) where user_id = {MARKED}").fetchall() == [(0,)]
    (again,) = delete_user(table, MARKED)
    assert (again.rows, again.snapshot_id) == (0, None)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in Layout if layout.is_bucketed])
def test_only_the_files_that_hold_the_user_are_rewritten(catalog, layout):
    table = table_of(catalog, layout)
    bucket = int(buckets_of(np.array([MARKED]), 4)[0])
    before = {task.file.file_path: task.file.partition[0] for task in table.scan().plan_files()}
    (report,) = delete_user(table, [MARKED])
    after = {task.file.file_path: task.file.partition[0] for task in table.scan().plan_files()}
    assert {before[path] for path in set(before) - set(after)} == {bucket}
    assert len(set(before) & set(after)) == 3 == report.untouched
    assert (report.files, report.rewritten) == (1, 1)
    assert report.bytes == sum(Path(p.removeprefix("file://")).stat().st_size for p in set(after) - set(before))
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right):
        assert check(table).ok


@pytest.mark.slow
def test_days_without_the_user_are_left_alone(catalog):
    table = table_of(catalog, Layout.ARRIVAL)
    before = set(files_of(table))
    (report,) = delete_user(table, MARKED)
    assert len(before) == 3
    assert (report.files, report.untouched) == (2, 1)
    assert len(before & set(files_of(table))) == 1


def test_a_file_of_that_user_alone_is_not_replaced(catalog):
    table = create_table(catalog, "test.alone", log_schema(), Layout.BY_REQUEST, num_buckets=1)
    write(table, to_batches([request for request in LOG if request["user_id"] == MARKED]))
    (report,) = delete_user(table, MARKED)
    assert (report.files, report.rewritten, table.scan().count()) == (1, 0, 0)


@pytest.mark.slow
def test_manifests_of_a_compaction_before_do_not_remember_the_user(catalog):
    """Compaction removes files whose bounds are the user; those entries must not outlive the user."""
    table = table_of(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log(num_users=6, seed=8)), mode="append")
    compact(table)
    delete_user(table, MARKED, erase=True)
    assert bytes_of(Path(table.location().removeprefix("file://"))) == {
        "raw": set(),
        "manifests": set(),
        "parquet": set(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("by_position", [False, True], ids=["with keys", "by position"])
def test_side_tables_lose_the_user_too(catalog, by_position):
    main = table_of(catalog, Layout.BY_REQUEST)
    side = create_feature_table(catalog, "test.side", main, [COUNT, SEQUENCE], by_position=by_position)
    marked = HISTORY[:, 0].astype("<i8").tobytes()

    def compute(requests):
        is_marked = np.array(requests["user_id"].to_pylist()) == MARKED
        blobs = pa.array([marked if one else b"" for one in is_marked], pa.binary())
        return {"count": of_request(requests), "sequence": blobs}

    add_request_feature(main, side, compute)
    expected = bucket_rows(main, side, without=MARKED)
    folder = Path(side.location().removeprefix("file://"))
    assert "history" in bytes_of(folder)["parquet"]
    reports = delete_user([side, main], MARKED, erase=True)
    assert [(report.table, report.rows) for report in reports] == [("test.by_request", 8), ("test.side", 2)]
    assert reports[1].untouched == 3
    assert bucket_rows(main.refresh(), side.refresh()) == expected
    for one in (main, side):
        assert not any(bytes_of(Path(one.location().removeprefix("file://"))).values())
    assert [report.rows for report in delete_user([main, side], MARKED)] == [0, 0]


def bucket_rows(main, side, without=None):
    rows = bucket_join(main, side, how="inner", columns=["count"]).batches(["user_id", "request_id", "count"])
    return [row for batch in rows for row in batch.to_pylist() if row["user_id"] != without]


@pytest.mark.slow
def test_branches_and_tags_that_hold_the_user_are_named_and_dropped_on_request(catalog):
    table = table_of(catalog, Layout.BY_REQUEST)
    first = table.current_snapshot().snapshot_id
    write(table, to_batches(OTHERS))
    table.manage_snapshots().create_tag(first, "v1").create_tag(table.current_snapshot().snapshot_id, "clean").commit()
    (report,) = delete_user(table, MARKED)
    assert (report.rows, report.held_by) == (0, ("v1",))
    (report,) = delete_user(table, MARKED, drop_refs=True, erase=True)
    assert report.held_by == ()
    assert set(table.refresh().metadata.refs) == {"main", "clean"}
    assert not any(bytes_of(Path(table.location().removeprefix("file://"))).values())


@pytest.mark.slow
def test_several_users_and_users_that_are_not_there(catalog):
    table = table_of(catalog, Layout.SORTED)
    victims = sorted({request["user_id"] for request in LOG})[::3]
    (report,) = delete_user(table, np.array([*victims, 123456789]))
    left = [request for request in LOG if request["user_id"] not in victims]
    assert report.requests == len(LOG) - len(left)
    assert rows_of(TableSource(table).batches()) == rows_of(to_batches(left))
    (report,) = delete_user(table, 123456789)
    assert (report.rows, report.files, report.snapshot_id) == (0, 0, None)


@pytest.mark.slow
def test_rows_that_others_append_meanwhile_are_deleted_or_kept_as_they_should(catalog, monkeypatch):
    table = table_of(catalog, Layout.BY_REQUEST)
    late = make_log(num_users=4, seed=40)
    again = [make_request(np.random.default_rng(3), MARKED, 950_000, fan_out=2, events=HISTORY, day=0)]
    pending = [late + again]
    commit = StagedFiles.commit

    def commit_after_another(self, **options):
        if options.get("rebase") and pending:
            write(catalog.load_table(table.name()), to_batches(pending.pop()), mode="append")
        return commit(self, **options)

    monkeypatch.setattr(StagedFiles, "commit", commit_after_another)
    (report,) = delete_user(table, MARKED)
    assert (report.rows, report.requests) == (10, 3)
    assert rows_of(TableSource(table.refresh()).batches()) == rows_of(to_batches(OTHERS + late))


@pytest.mark.slow
def test_bad_input_says_what_to_do(catalog):
    main = table_of(catalog, Layout.BY_REQUEST)
    for wrong in ([], ["7"], [1.5], [2**63], [True], [None]):
        with pytest.raises(ValueError, match=r"user_ids: .* required, found"):
            delete_user(main, wrong)
    side = create_feature_table(catalog, "test.side", main, [COUNT], by_position=True)
    add_request_feature(main, side, constant(3))
    with pytest.raises(ValueError, match=r"its main table test.by_request among the tables required"):
        delete_user(side, MARKED)
    with pytest.raises(ValueError, match=r"by position among the tables required with erase.*not found: test.side"):
        delete_user(main, MARKED, erase=True)
    foreign = catalog.create_table("test.foreign", pa.schema([("user_id", pa.int64())]))
    with pytest.raises(ValueError, match=r"table property reqdedup.layout required"):
        delete_user([main, foreign], MARKED)
    assert main.refresh().scan().count() == sum(len(request["items"]) for request in LOG)
