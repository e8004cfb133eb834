"""What lies in buckets is written bucket by bucket: the files of one write of the same rows, on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from reqdedup.storage import (
    InOrder,
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    replace_table,
    sample_users,
    write,
)
from reqdedup.storage.tasks import remove_left
from tests.distributed.faulty import Faulty
from tests.distributed.listening import Listening
from tests.storage.feature_tables import COUNT, NUM_BUCKETS, main_table, of_request
from tests.storage.maintenance.stored_files import needed_by, on_disk
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import files_of, rows_of

pytestmark = pytest.mark.slow


@pytest.fixture
def joined(catalog):
    main = main_table(catalog, make_log(num_users=30, seed=4, mean_fan_out=90))  # a bucket has rows enough to choose by
    side = create_feature_table(catalog, "lake.side", main, [COUNT])
    add_request_feature(main, side, of_request)
    return bucket_join(main, side)


def contents(table) -> dict[str, bytes]:
    """Bytes of the one file of each bucket."""
    return {Path(path).parent.name: Path(path).read_bytes() for path in files_of(table.refresh())}


@pytest.mark.parametrize(
    "layout",
    [
        Layout.BY_REQUEST,
        *(pytest.param(one, marks=pytest.mark.soak) for one in (Layout.SORTED, Layout.SORTED_LARGE_PAGES)),
    ],
)
def test_a_join_is_written_as_one_write_would(catalog, joined, layout):
    made = [
        create_table(catalog, f"lake.{name}", joined.schema, layout, num_buckets=NUM_BUCKETS) for name in ("a", "b")
    ]
    once = write(made[0], InOrder(joined.batches()))
    report = joined.write_to(made[1], engine=Faulty(3))
    counted = ("rows", "requests", "users", "files", "row_groups", "bytes")
    assert [getattr(report, name) for name in counted] == [getattr(once, name) for name in counted]
    assert contents(made[0]) == contents(made[1])
    assert joined.counts.left_rows == report.rows
    assert on_disk(made[1]) == needed_by(made[1])


@pytest.mark.parametrize("num_buckets", [pytest.param(NUM_BUCKETS // 2, marks=pytest.mark.soak), 2 * NUM_BUCKETS])
def test_buckets_that_divide_each_other_are_enough(catalog, joined, num_buckets):
    table = create_table(catalog, "lake.a", joined.schema, Layout.BY_REQUEST, num_buckets=num_buckets)
    joined.write_to(table, engine=Faulty(4))
    assert rows_of(TableSource(table.refresh()).batches()) == rows_of(joined.batches())
    other = create_table(catalog, "lake.b", joined.schema, Layout.BY_REQUEST, num_buckets=3)
    joined.write_to(other)  # by this process alone
    assert rows_of(TableSource(other.refresh()).batches()) == rows_of(joined.batches())
    with pytest.raises(ValueError, match=r"bucket count and the table's divide each other.*found a BucketJoin"):
        joined.write_to(other, engine="processes:2")


def test_a_table_is_replaced_in_another_form_by_tasks(catalog, joined):
    replace_table(catalog, "lake.a", joined.schema, Layout.SORTED, to_batches_of(joined), num_buckets=3)
    replace_table(
        catalog, "lake.a", joined.schema, Layout.BY_REQUEST, joined, num_buckets=NUM_BUCKETS, engine=Faulty(7)
    )
    table = catalog.load_table("lake.a")
    assert rows_of(TableSource(table).batches()) == rows_of(joined.batches())
    replace_table(catalog, "lake.a", joined.schema, Layout.SORTED, TableSource(table), num_buckets=2, engine=Faulty(8))
    assert rows_of(TableSource(table.refresh()).batches()) == rows_of(joined.batches())
    assert len(files_of(table)) == 2
    assert on_disk(table) == needed_by(table)


def to_batches_of(joined) -> list:
    return list(joined.batches())


@pytest.mark.parametrize("of_join", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_sample_is_appended_to_what_is_there(catalog, joined, of_join):
    source = joined if of_join else catalog.load_table("lake.main_by_request")
    sample = sample_users(source, rate=0.5, max_requests_per_user=2)
    table = create_table(catalog, "lake.a", sample.schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    engine = Listening()
    sample.write_to(table, engine=engine)
    assert sum(task.num_bytes for task in engine.tasks) > 0.9 * sample.num_bytes > 0
    report = sample.write_to(table, mode="append", engine=Faulty(5))
    twice = [*sample.batches(), *sample.batches()]
    assert report.users == len(sample.user_ids)
    assert rows_of(TableSource(table.refresh()).batches()) == rows_of(twice)


def test_a_sample_of_what_lies_in_no_order_is_sorted(catalog):
    main = main_table(catalog)
    write(main, to_batches(make_log(num_users=30, seed=4)[:9]), mode="append")
    sample = sample_users(main, rate=0.9)
    table = create_table(catalog, "lake.a", sample.schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    sample.write_to(table, engine=Faulty(6))
    assert rows_of(TableSource(table.refresh()).batches()) == rows_of(sample.batches())


def test_a_file_that_cannot_be_deleted_keeps_no_other_of_a_failed_write(catalog, tmp_path, monkeypatch):
    table = create_table(catalog, "lake.t", log_schema(), Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    data = Path(table.location().removeprefix("file://")) / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name in ("w-0.parquet", "w-1.parquet", "w-2.parquet", "x-0.parquet"):
        (data / name).touch()
    delete = table.io.delete

    def refusing(path: str) -> None:
        if path.endswith("w-1.parquet"):
            raise PermissionError(path)
        delete(path)

    monkeypatch.setattr(table.io, "delete", refusing)
    remove_left(table, ["w"])
    assert sorted(path.name for path in data.iterdir()) == ["w-1.parquet", "x-0.parquet"]
