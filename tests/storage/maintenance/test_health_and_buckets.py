"""The health report counts what SQL counts; another bucket count keeps every row, in old snapshots and new ones."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
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
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets
from reqdedup.storage.maintenance import (
    choose_num_buckets,
    compact,
    delete_user,
    rebucket,
    sweep_orphans,
    table_health,
)
from reqdedup.storage.measure import checks
from reqdedup.storage.write import writer
from tests.distributed.faulty import Faulty
from tests.storage.feature_tables import COUNT, SEQUENCE, constant, of_request
from tests.storage.maintenance.appended_days import append_days, days, new_table, same_forms
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import log_schema, make_log, make_request, to_batches
from tests.storage.tables import files_of, rows_of

BUCKETED = [layout for layout in Layout if layout.is_bucketed]


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_the_report_counts_what_sql_counts(catalog, layout):
    table = new_table(catalog, layout)
    append_days(table, days(2))
    health = table_health(table)
    relation = f"read_parquet({files_of(table)}, filename = true)"
    rows, users, files = duckdb.sql(
        f"select count(*), count(distinct user_id), count(distinct filename) from {relation}"
    ).fetchall()[0]
    assert (health.rows, health.users, health.files) == (rows, users, files)
    assert health.bytes == sum(task.file.file_size_in_bytes for task in table.scan().plan_files())
    if layout.is_bucketed:
        per_user = duckdb.sql(f"select user_id, count(*) from {relation} group by 1 order by 2 desc").fetchall()
        for bucket in health.buckets.to_pylist():
            here = [(user, n) for user, n in per_user if buckets_of(np.array([user]), 4)[0] == bucket["partition"]]
            assert bucket["users"] == len(here)
            assert bucket["rows"] == sum(n for _, n in here)
            assert bucket["largest_user_share"] == max(n for _, n in here) / bucket["rows"]
            assert (bucket["files"], bucket["small_files"], bucket["is_compact"]) == (2, 2, False)
        assert "compact: 4 of 4 buckets" in health.advice[0]
        compact(table)
        assert not any("compact" in line for line in table_health(table).advice)
    without = table_health(table, count_users=False)
    assert without.users is None
    assert without.buckets.column("users").null_count == without.buckets.num_rows


@pytest.mark.slow
def test_skew_and_a_user_that_no_bucket_count_can_split_are_told(catalog):
    table = new_table(catalog, num_buckets=8)
    rng = np.random.default_rng(0)
    heavy = [
        make_request(rng, 5, 10_000 + i, fan_out=200, events=rng.integers(1, 2**40, (60, 3)), day=0) for i in range(20)
    ]
    write(table, to_batches(make_log(num_users=30, seed=3) + heavy))
    health = table_health(table)
    assert health.skew > 3
    assert any("cap the largest users: user 5 has" in line for line in health.advice)


def test_an_empty_table_is_healthy(catalog):
    health = table_health(new_table(catalog))
    assert (health.files, health.rows, health.users, health.skew, health.advice) == (0, 0, 0, None, ())


def test_bucket_counts_follow_size_rows_users_and_workers():
    gigabyte = 2**30
    for options, expected in [
        ({"stored_bytes": 100}, 1),
        ({"stored_bytes": 40 * gigabyte}, 128),
        ({"stored_bytes": gigabyte, "rows": 500_000_000}, 32),
        ({"stored_bytes": gigabyte, "workers": 12}, 16),
        ({"stored_bytes": 40 * gigabyte, "users": 1000}, 8),
        ({"stored_bytes": 40 * gigabyte, "users": 3}, 1),
        ({"stored_bytes": 10**16}, 4096),
        ({"rows": 0}, 1),
    ]:
        choice = choose_num_buckets(**options)
        assert choice.num_buckets == expected, (options, choice)
    assert "a user is never split" in choose_num_buckets(stored_bytes=40 * gigabyte, users=1000).reason
    with pytest.raises(ValueError, match="stored_bytes or rows required"):
        choose_num_buckets(users=3)
    with pytest.raises(ValueError, match="rows: at least 0 required, found -1"):
        choose_num_buckets(rows=-1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", BUCKETED)
@pytest.mark.parametrize("num_buckets", [1, 3, 8])
def test_another_bucket_count_keeps_every_row(catalog, layout, num_buckets):
    table, fresh = new_table(catalog, layout), new_table(catalog, layout, name="fresh", num_buckets=num_buckets)
    batches = append_days(table, days(2))
    same_forms(fresh, table)
    write(fresh, batches, mode="append")
    old = table.current_snapshot().snapshot_id
    report = rebucket(table, num_buckets)
    assert (report.old_buckets, report.num_buckets, table_buckets(table)) == (4, num_buckets, num_buckets)
    assert rows_of(TableSource(table).batches()) == rows_of(batches)
    for check in (checks.requests_whole, checks.sort_order_true, checks.buckets_right):
        assert check(table).ok
    assert report.bytes == sum(task.file.file_size_in_bytes for task in fresh.scan().plan_files())
    before = TableSource(table, snapshot_id=old)
    assert before.num_buckets == 4
    user = np.array([batches[0].column("user_id")[0].as_py()])
    for source in (before, TableSource(table)):  # pruning by bucket is right in both
        mine = rows_of(source.batches(users=user))
        assert mine
        assert mine == rows_of(batch.filter(np.isin(batch["user_id"].to_numpy(), user)) for batch in batches)


@pytest.mark.slow
def test_tasks_change_the_count_to_one_that_does_not_divide_it(catalog):
    here, there = new_table(catalog), new_table(catalog, name="there")
    for table, engine in ((here, "inline"), (there, Faulty(1))):
        append_days(table, days(2))
        report = rebucket(table, 3, engine=engine)
        assert (report.num_buckets, table_buckets(table)) == (3, 3)
    contents = [
        sorted(
            (task.file.partition[0], Path(task.file.file_path[7:]).read_bytes()) for task in table.scan().plan_files()
        )
        for table in (here, there)
    ]
    assert contents[0] == contents[1]
    assert on_disk(there) == needed_by(there)


@pytest.mark.slow
def test_a_table_goes_on_living_after_its_count_has_changed(catalog):
    table = new_table(catalog)
    batches = append_days(table, days(2))
    rebucket(table, 8)
    late = make_log(num_users=5, seed=50)
    write(table, to_batches(late), mode="append")
    compact(table)
    gone = late[0]["user_id"]
    delete_user(table, gone)
    rebucket(table, 4)
    assert len(table.specs()) == 2
    kept = [request for request in late if request["user_id"] != gone]
    assert rows_of(TableSource(table).batches()) == rows_of(batches + to_batches(kept))
    assert checks.buckets_right(table).ok
    assert sweep_orphans(table).files.num_rows == 0
    found = duckdb.sql(f"select count(*) from read_parquet({files_of(table)})").fetchall()
    assert found == [(sum(b.num_rows for b in batches + to_batches(kept)),)]
    assert table.scan().count() == found[0][0]


@pytest.mark.slow
def test_a_writer_that_began_before_the_change_is_refused(catalog, monkeypatch):
    table = new_table(catalog)
    batches = append_days(table, days(1))
    commit, pending = StagedFiles.commit, [8]

    def commit_after_another(self, **options):
        if pending:
            rebucket(catalog.load_table(table.name()), pending.pop())
        return commit(self, **options)

    monkeypatch.setattr(StagedFiles, "commit", commit_after_another)
    with pytest.raises(ConflictError, match="another writer changed the table"):
        write(table, to_batches(make_log(num_users=3, seed=60)), mode="append")
    assert rows_of(TableSource(catalog.load_table(table.name())).batches()) == rows_of(batches)


@pytest.mark.slow
def test_a_feature_table_follows_its_main_table(catalog):
    main = create_table(catalog, "test.main", log_schema(), Layout.BY_REQUEST, num_buckets=4)
    batches = append_days(main, days(1))
    side = create_feature_table(catalog, "test.side", main, [COUNT, SEQUENCE])
    add_request_feature(
        main, side, lambda requests: {"count": of_request(requests), "sequence": [[1, 2]] * requests.num_rows}
    )
    expected = rows_of(bucket_join(main, side, how="inner").batches())
    told: list[tuple[int, int]] = []
    for num_buckets in (8, 2, 4):
        rebucket(main, num_buckets)
        told.clear()
        report = rebucket(side, num_buckets, progress=lambda *done: told.append(done))
        assert told[-1] == (report.rows, report.rows)
        assert report.rows == len({(row["user_id"], row["request_id"]) for b in batches for row in b.to_pylist()})
        assert rows_of(bucket_join(main, side, how="inner").batches()) == expected
    add_request_feature(main, side, constant(7), columns=[COUNT])
    with pytest.raises(ValueError, match="divide each other required for a feature table, found 4 and 6"):
        rebucket(side, 6)


@pytest.mark.slow
def test_bad_input_says_what_to_do(catalog):
    table = new_table(catalog)
    with pytest.raises(ValueError, match="num_buckets must be positive, found 0"):
        rebucket(table, 0)
    assert rebucket(table, 2).snapshot_id is None
    assert table_buckets(catalog.load_table(table.name())) == 2
    raw = new_table(catalog, Layout.ARRIVAL, name="raw")
    with pytest.raises(ValueError, match=r"partition spec bucket\(N, user_id\) required, found ARRIVAL"):
        rebucket(raw, 2)
    main = new_table(catalog, name="main")
    append_days(main, days(1))
    side = create_feature_table(catalog, "test.side", main, [COUNT], by_position=True)
    with pytest.raises(ValueError, match="found one by position; create it again"):
        rebucket(side, 2)
    with pytest.raises(ValueError, match="found a feature table; look at its main table"):
        table_health(side)


@pytest.mark.slow
@pytest.mark.parametrize("num_buckets", [2, 4, 16, 6])
def test_a_bucket_count_that_fits_is_changed_without_a_spill(catalog, monkeypatch, num_buckets):
    catalog.create_namespace("m")
    table = create_table(catalog, "m.t", log_schema(), Layout.BY_REQUEST, num_buckets=4)
    for seed in (1, 2):
        write(table, to_batches(make_log(num_users=30, seed=seed)), mode="append")
    before, spills = checks.content_checksum(TableSource(table)), []
    opened = writer.open_spill
    monkeypatch.setattr(writer, "open_spill", lambda *args, **options: spills.append(1) or opened(*args, **options))
    rebucket(table, num_buckets)
    assert checks.content_checksum(TableSource(table.refresh())) == before
    assert checks.buckets_right(table).ok
    assert checks.sort_order_true(table).ok
    assert bool(spills) == (num_buckets == 6)
