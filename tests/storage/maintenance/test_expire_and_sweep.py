"""Expiry and sweep free exactly what nothing needs: an independent walk over the metadata says what that is."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reqdedup.storage import TableSource, write
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.maintenance import compact, expire_snapshots, sweep_orphans
from reqdedup.storage.measure import checks
from tests.storage.maintenance.appended_days import append_days, days, new_table
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import make_log, to_batches

NOW = timedelta(0)


def age(paths, *, days_old: float = 10) -> None:
    stamp = time.time() - days_old * 86_400
    for path in paths:
        os.utime(path, (stamp, stamp))


@pytest.fixture
def table(catalog):
    """Two days, compacted: three snapshots or more, of which the newest needs few files."""
    table = new_table(catalog)
    append_days(table, days(2))
    compact(table, one_commit=True)
    return table


def test_expiry_leaves_on_disk_what_the_remaining_snapshots_need(table):
    checksum = checks.content_checksum(TableSource(table))
    before = on_disk(table)
    planned = expire_snapshots(table, older_than=NOW, dry_run=True)
    assert on_disk(table) == before
    assert len(table.snapshots()) == 3
    report = expire_snapshots(table, older_than=NOW)
    assert (report.expired, report.kept, report.files) == (planned.expired, 1, planned.files)
    assert report.files["data"] == 8
    assert len(table.snapshots()) == 1
    assert on_disk(table) == needed_by(table)
    assert report.bytes > 0
    assert checks.content_checksum(TableSource(table)) == checksum
    assert expire_snapshots(table, older_than=NOW).expired == ()


def test_expiry_keeps_the_last_snapshots_young_ones_branches_and_tags(table):
    oldest, middle, newest = (snapshot.snapshot_id for snapshot in table.snapshots())
    assert expire_snapshots(table).expired == ()
    assert expire_snapshots(table, older_than=NOW, keep_last=2, dry_run=True).expired == (oldest,)
    assert expire_snapshots(table, older_than=datetime(2020, 1, 1, tzinfo=UTC)).expired == ()
    table.manage_snapshots().create_tag(oldest, "v1").create_branch(middle, "audit").commit()
    assert expire_snapshots(table, older_than=NOW).expired == ()
    table.manage_snapshots().remove_tag("v1").commit()
    assert expire_snapshots(table, older_than=NOW).expired == (oldest,)
    assert {snapshot.snapshot_id for snapshot in table.snapshots()} == {middle, newest}
    for snapshot in (middle, newest):
        assert sum(batch.num_rows for batch in TableSource(table, snapshot_id=snapshot).batches()) > 0


def test_an_expiry_that_an_append_overtakes_starts_again(catalog, table, monkeypatch):
    from reqdedup.storage.maintenance import expire

    pending = [make_log(num_users=3, seed=30)]
    commit_refs = expire.commit_refs

    def commit_after_another(*args, **options):
        if pending:
            write(catalog.load_table(table.name()), to_batches(pending.pop()), mode="append")
        return commit_refs(*args, **options)

    monkeypatch.setattr(expire, "commit_refs", commit_after_another)
    rows = sum(batch.num_rows for batch in TableSource(table).batches())
    report = expire_snapshots(table, older_than=NOW)
    assert len(report.expired) == 3
    assert sum(batch.num_rows for batch in TableSource(table).batches()) > rows
    assert on_disk(table) == needed_by(table)


def test_the_sweep_finds_what_a_lost_writer_left_and_nothing_else(table, monkeypatch):
    needed = on_disk(table)
    monkeypatch.setattr(StagedFiles, "__exit__", lambda *args: None)  # as if killed before it could tidy up
    monkeypatch.setattr(StagedFiles, "commit", lambda self, **options: None)
    write(table, to_batches(make_log(num_users=5, seed=31)), mode="append")
    left = on_disk(table) - needed
    assert left
    for name in ("notes.txt", "_SUCCESS", "data/.hidden.parquet"):
        Path(table.location().removeprefix("file://"), name).write_text("not the table's")

    guarded = sweep_orphans(table, older_than=timedelta(hours=1), dry_run=False)
    assert (guarded.files.num_rows, guarded.young, guarded.unknown) == (0, len(left), 3)
    age(left)
    look = sweep_orphans(table)
    assert {path.removeprefix("file://") for path in look.files.column("path").to_pylist()} == left
    assert look.bytes == sum(Path(path).stat().st_size for path in left)
    assert left <= on_disk(table)
    assert sweep_orphans(table, dry_run=False).files.num_rows == len(left)
    assert len(on_disk(table)) == len(needed) + 3
    assert sweep_orphans(table, older_than=NOW).files.num_rows == 0


def test_a_sweep_after_pyicebergs_own_expiry_frees_its_files(table):
    for snapshot in table.snapshots()[:-1]:
        table.maintenance.expire_snapshots().by_id(snapshot.snapshot_id).commit()
    assert needed_by(table) < on_disk(table)
    time.sleep(0.05)
    report = sweep_orphans(table, older_than=NOW, dry_run=False)
    assert report.files.num_rows == len(set(report.files.column("path").to_pylist())) >= 8
    assert on_disk(table) == needed_by(table)


def test_branches_tags_and_staged_snapshots_are_not_orphans(table):
    oldest = table.snapshots()[0].snapshot_id
    table.manage_snapshots().create_tag(oldest, "v1").commit()
    expire_snapshots(table, older_than=NOW)
    assert sweep_orphans(table, older_than=NOW, dry_run=False).files.num_rows == 0
    assert sum(batch.num_rows for batch in TableSource(table, snapshot_id=oldest).batches()) > 0


def test_a_folder_with_another_table_is_refused(catalog, table):
    other = catalog.create_table("test.inside", table.schema(), location=f"{table.location()}/other")
    age(on_disk(other))
    with pytest.raises(ValueError, match="folder of its own required, found metadata of table"):
        sweep_orphans(table, older_than=NOW, dry_run=False)
    assert on_disk(other)
    catalog.drop_table("test.inside")
    uuid = str(other.metadata.table_uuid)
    assert sweep_orphans(table, older_than=NOW, dry_run=False, dropped=[uuid]).files.num_rows == 1


def test_a_table_whose_files_are_missing_is_not_swept(table):
    lost = next(iter(table.scan().plan_files())).file.file_path.removeprefix("file://")
    Path(lost).rename(lost + ".moved")
    with pytest.raises(ValueError, match="every file of the table listed under"):
        sweep_orphans(table, older_than=NOW, dry_run=False)


def test_a_linked_folder_is_not_followed_into_others_files(table, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.parquet").write_text("someone else's")
    Path(table.location().removeprefix("file://"), "data", "link").symlink_to(elsewhere)
    time.sleep(0.05)
    with pytest.raises(ValueError, match="a link to elsewhere"):
        sweep_orphans(table, older_than=NOW, dry_run=False)
    assert (elsewhere / "precious.parquet").exists()


def test_half_written_metadata_of_a_killed_writer_is_an_orphan(table):
    half = Path(table.location().removeprefix("file://"), "metadata", "00099-half.metadata.json")
    half.write_text(json.dumps({"format-version": 2})[:12])
    time.sleep(0.05)
    assert sweep_orphans(table, older_than=NOW, dry_run=False).files.column("path").to_pylist() == [f"file://{half}"]


def test_bad_ages_and_counts_say_what_is_required(table):
    for call in (expire_snapshots, sweep_orphans):
        with pytest.raises(ValueError, match="an age of at least 0 required"):
            call(table, older_than=timedelta(days=-1))
        with pytest.raises(ValueError, match="a time with its zone required"):
            call(table, older_than=datetime(2025, 1, 1))
    with pytest.raises(ValueError, match="keep_last: at least 1 required, found 0"):
        expire_snapshots(table, keep_last=0)
