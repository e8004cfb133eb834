"""After compaction a table is what one write of all its rows would have made, and nothing that others wrote is lost."""

from __future__ import annotations

import threading

import pyarrow.parquet as pq
import pytest
from pyiceberg.transforms import BucketTransform

from reqdedup.storage import Layout, TableSource, write
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets
from reqdedup.storage.maintenance import compact
from reqdedup.storage.measure import checks
from reqdedup.storage.tasks import groups
from tests.storage.maintenance.appended_days import append_days, days, new_table, same_forms
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import make_log, to_batch, to_batches
from tests.storage.tables import files_of, rows_of

BUCKETED = [layout for layout in Layout if layout.is_bucketed]


@pytest.mark.slow
@pytest.mark.parametrize("layout", BUCKETED)
def test_a_compacted_table_is_what_one_write_would_have_made(catalog, layout):
    table, once = new_table(catalog, layout), new_table(catalog, layout, name="once")
    batches = append_days(table, days())
    same_forms(once, table)
    write(once, batches, mode="append")
    before = len(files_of(table))
    report = compact(table)
    assert report.old_files == before == 12
    assert (report.files, report.rows) == (4, sum(batch.num_rows for batch in batches))
    assert report.buckets == (0, 1, 2, 3)
    assert rows_of(TableSource(table).batches()) == rows_of(batches)
    for got, wanted in zip(TableSource(table).paths, TableSource(once).paths, strict=True):
        assert pq.read_table(got.removeprefix("file://")).equals(pq.read_table(wanted.removeprefix("file://")))
    assert report.bytes == sum(task.file.file_size_in_bytes for task in once.scan().plan_files())
    assert compact(table).buckets == ()


@pytest.mark.slow
@pytest.mark.parametrize("layout", BUCKETED)
def test_a_request_that_came_in_two_appends_is_whole_afterwards(catalog, layout):
    table = new_table(catalog, layout)
    log = make_log(num_users=12, seed=2)
    whole = to_batch(log)
    rows = [range(start, whole.num_rows, 2) for start in (0, 1)]
    for part in rows:
        write(table, [to_batch(log, rows=list(part))], mode="append")
    assert not checks.requests_whole(table).ok
    compact(table)
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right):
        assert check(table).ok
    assert rows_of(TableSource(table).batches()) == rows_of([whole])


@pytest.mark.slow
def test_days_of_the_raw_table_are_compacted_each_for_itself(catalog):
    table = new_table(catalog, Layout.ARRIVAL)
    batches = append_days(table, days())
    num_days = len({task.file.partition[0] for task in table.scan().plan_files()})
    assert len(files_of(table)) > num_days
    report = compact(table)
    assert (report.files, len(report.buckets)) == (num_days, num_days)
    assert rows_of(TableSource(table).batches()) == rows_of(batches)


@pytest.mark.slow
def test_only_the_asked_and_affected_buckets_are_rewritten(catalog):
    table = new_table(catalog)
    append_days(table, days(1))
    one_user = make_log(num_users=1, seed=9)
    bucket = int(buckets_of([one_user[0]["user_id"]], table_buckets(table))[0])
    write(table, to_batches(one_user), mode="append")
    before = set(files_of(table))
    assert compact(table, [(bucket + 1) % 4]).buckets == ()
    assert set(files_of(table)) == before
    report = compact(table)
    assert (report.buckets, report.left_alone) == ((bucket,), 3)
    assert len(before & set(files_of(table))) == 3
    forced = compact(table, [(bucket + 1) % 4], force=True)
    assert (forced.old_files, forced.files, forced.left_alone) == (1, 1, 0)


@pytest.mark.slow
def test_one_commit_for_all_buckets_or_one_for_some_neighbours(catalog, monkeypatch):
    table = new_table(catalog)
    append_days(table, days())
    snapshots = len(table.snapshots())
    seen = []
    compact(table, [0, 1], one_commit=True, progress=lambda done, total: seen.append((done, total)))
    assert len(table.snapshots()) == snapshots + 1
    assert seen == [(1, 2), (2, 2)]
    compact(table)
    assert len(table.snapshots()) == snapshots + 2
    monkeypatch.setattr(groups, "BUCKETS_TOGETHER", 3)
    compact(table, force=True)
    assert len(table.snapshots()) == snapshots + 4


@pytest.mark.slow
def test_what_is_appended_meanwhile_stays(catalog, monkeypatch):
    """An append lands between the rewrite of each bucket and its commit."""
    monkeypatch.setattr(groups, "BUCKETS_TOGETHER", 1)
    table = new_table(catalog)
    batches = append_days(table, days(2))
    late = [make_log(num_users=3, seed=seed) for seed in range(20, 24)]
    pending = list(late)
    commit = StagedFiles.commit

    def commit_after_another(self, **options):
        if options.get("rebase") and pending:
            write(catalog.load_table("test.compact"), to_batches(pending.pop()), mode="append")
        return commit(self, **options)

    monkeypatch.setattr(StagedFiles, "commit", commit_after_another)
    report = compact(table)
    assert report.buckets == (0, 1, 2, 3)
    assert not pending
    expected = rows_of(batches + [batch for log in late for batch in to_batches(log)])
    assert rows_of(TableSource(catalog.load_table("test.compact")).batches()) == expected


@pytest.mark.slow
def test_a_bucket_that_another_run_compacts_meanwhile_is_left_to_it(catalog, monkeypatch):
    table = new_table(catalog)
    batches = append_days(table, days(2))
    commit = StagedFiles.commit
    others = []

    def commit_after_another(self, **options):
        if not others:
            others.append(None)
            others.append(compact(catalog.load_table("test.compact")))
        return commit(self, **options)

    monkeypatch.setattr(StagedFiles, "commit", commit_after_another)
    report = compact(table)
    assert others[1].buckets == (0, 1, 2, 3)
    assert report.buckets == ()
    assert rows_of(TableSource(catalog.load_table("test.compact")).batches()) == rows_of(batches)


@pytest.mark.slow
def test_of_a_group_the_buckets_that_nobody_else_changed_are_committed(catalog, monkeypatch):
    """Another run has compacted bucket 2 between our rewrite of all four and our commit."""
    table = new_table(catalog)
    batches = append_days(table, days(2))
    commit, others = StagedFiles.commit, []

    def commit_after_another(self, **options):
        if not others:
            others.append(None)
            others.append(compact(catalog.load_table("test.compact"), [2]))
        return commit(self, **options)

    monkeypatch.setattr(StagedFiles, "commit", commit_after_another)
    report = compact(table)
    assert (others[1].buckets, report.buckets) == ((2,), (0, 1, 3))
    table = catalog.load_table("test.compact")
    assert len(files_of(table)) == 4
    assert rows_of(TableSource(table).batches()) == rows_of(batches)
    assert on_disk(table) == needed_by(table)


@pytest.mark.slow
def test_a_partition_spec_that_changes_meanwhile_is_told(catalog, monkeypatch):
    table = new_table(catalog)
    append_days(table, days(2))
    commit, others = StagedFiles.commit, []

    def commit_after_another(self, **options):
        if not others:
            others.append(None)
            with catalog.load_table("test.compact").update_spec() as update:
                update.remove_field("user_bucket")
                update.add_field("user_id", BucketTransform(3), "by_number")
        return commit(self, **options)

    monkeypatch.setattr(StagedFiles, "commit", commit_after_another)
    with pytest.raises(ConflictError, match="one partition spec for all files required, found it changed"):
        compact(table)
    assert compact(table).rows == TableSource(table.refresh()).num_rows


@pytest.mark.slow
def test_files_that_are_replaced_again_and_again_are_a_clear_error(catalog, monkeypatch):
    table = new_table(catalog)
    batches = append_days(table, days(2))
    monkeypatch.setattr("reqdedup.storage.maintenance.compaction.ATTEMPTS", 2)
    commit, inside = StagedFiles.commit, threading.local()

    def commit_after_another(self, **options):
        if not getattr(inside, "it", False):
            inside.it = True
            try:
                compact(catalog.load_table("test.compact"), force=True)
            finally:
                inside.it = False
        return commit(self, **options)

    monkeypatch.setattr(StagedFiles, "commit", commit_after_another)
    with pytest.raises(ConflictError, match=r"left alone by others required.*replaced 2 times"):
        compact(table, force=True)
    monkeypatch.undo()
    table = catalog.load_table("test.compact")
    assert rows_of(TableSource(table).batches()) == rows_of(batches)


@pytest.mark.slow
def test_an_unsorted_file_of_another_engine_is_put_in_order(catalog):

    table = new_table(catalog, Layout.SORTED_LARGE_PAGES)
    batches = append_days(table, days(1))
    rows = table.scan().to_arrow()
    table.overwrite(rows.sort_by([("item_id", "ascending")]))
    assert not checks.sort_order_true(table).ok
    assert compact(table).buckets == (0, 1, 2, 3)
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right):
        assert check(table).ok
    assert rows_of(TableSource(table).batches()) == rows_of(batches)


@pytest.mark.slow
def test_bad_input_says_what_to_do(catalog):
    table = new_table(catalog)
    assert compact(table).snapshot_id is None
    append_days(table, days(2))
    with pytest.raises(ValueError, match=r"buckets with rows required, found \[7\]; those with rows are 0, 1, 2, 3"):
        compact(table, [7])
    shuffled = new_table(catalog, Layout.SHUFFLED, name="shuffled")
    with pytest.raises(ValueError, match=r"found SHUFFLED.*mode='replace'"):
        compact(shuffled)
    contradiction = [dict(request, device=request["device"] + 1) for request in days(2)[0]]
    write(table, to_batches(contradiction), mode="append")
    before = set(files_of(table))
    with pytest.raises(ValueError, match="one value per request required"):
        compact(table)
    assert set(files_of(table)) == before
