"""What another engine did to our tables survives whatever rewrites them, or is refused by name and nothing is written.

pyiceberg's own scan is the reference, and plays the other engine.
"""

from __future__ import annotations

import shutil
import uuid
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.manifest import DATA_FILE_TYPE, DEFAULT_READ_VERSION
from pyiceberg.table.sorting import NullOrder
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.types import DecimalType, DoubleType, LongType, StringType

from reqdedup.schema import KEYS
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    compact,
    create_feature_table,
    create_table,
    delete_user,
    expire_snapshots,
    promote,
    realign,
    rebucket,
    table_health,
    write,
)
from reqdedup.storage.maintenance.live import live_files
from reqdedup.storage.measure import checks
from reqdedup.storage.read.buckets import check_sorted
from reqdedup.storage.read.feature_table import FeatureSource
from tests.storage.feature_tables import COUNT, RATE, SCORE, main_table, of_request
from tests.storage.foreign.delete_files import delete_positions, delete_where_equal
from tests.storage.small_log import log_schema, make_log, to_batch

pytestmark = pytest.mark.slow

BATCH = to_batch(make_log(num_users=8))
USER = BATCH["user_id"][0].as_py()
HUGE = 1e300
DATA_FILE_NAMES = [field.name for field in DATA_FILE_TYPE[DEFAULT_READ_VERSION].fields]
SORT_ORDER_ID = DATA_FILE_NAMES.index("sort_order_id")

REWRITES = {
    "compact": lambda table: compact(table, force=True),
    "rebucket": lambda table: rebucket(table, 4),
    "delete_user": lambda table: delete_user(table, USER),
}


def scanned(table) -> list[str]:
    """Every row with its values by column name, in a canonical order."""
    return sorted(repr(sorted(row.items())) for row in table.refresh().scan().to_arrow().to_pylist())


def without(table, user: int) -> list[str]:
    return [row for row in scanned(table) if repr(("user_id", user)) not in row]


def append(table, **columns) -> None:
    """Other requests of the same users, written by pyiceberg's own append; `columns` with one value on every row."""
    rows = table.scan().to_arrow()
    request = pc.add(rows["request_id"], 10**6)
    for name, values in (("request_id", request), *columns.items()):
        at = rows.schema.get_field_index(name)
        if not isinstance(values, pa.ChunkedArray):
            values = pa.array([values] * len(rows), rows.schema.field(at).type)
        rows = rows.set_column(at, rows.schema.field(at), values)
    table.append(rows)


@pytest.fixture(params=[Layout.BY_REQUEST, Layout.SORTED])
def table(catalog, request):
    table = create_table(catalog, "lake.t", log_schema(), request.param, num_buckets=2)
    write(table, [BATCH])
    return table


@pytest.mark.slow
@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_keeps_columns_that_were_added_and_types_that_were_widened(table, name):
    with table.update_schema() as update:
        update.add_column("extra", LongType())
        update.add_column("note", StringType())
        update.update_column("score", DoubleType())
        update.update_column("device", LongType())
    append(table, extra=7, note="Ж", score=HUGE, device=2**40)
    wanted = without(table, USER) if name == "delete_user" else scanned(table)
    REWRITES[name](table)
    assert scanned(table) == wanted
    assert any(str(HUGE) in row and str(2**40) in row and "('extra', 7)" in row for row in wanted)
    write(table, [BATCH], mode="append")  # of the types that the table was made with
    read = pa.Table.from_batches(TableSource(table).batches(["score", "device"]))
    assert read.schema.types == [pa.int64(), pa.float64()]
    assert sorted(read["device"].to_pylist()) == sorted(table.scan().to_arrow()["device"].to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("name", REWRITES)
def test_a_column_that_cannot_be_kept_is_named_before_anything_is_written(table, name):
    with table.update_schema() as update:
        update.add_column("price", DecimalType(9, 2))
    append(table)
    before = table.refresh().current_snapshot(), scanned(table)
    with pytest.raises(
        ValueError, match=r"found price \(decimal\(9, 2\)\), which another engine added; nothing was writ"
    ):
        REWRITES[name](table)
    assert (table.refresh().current_snapshot(), scanned(table)) == before


@pytest.mark.slow
def test_elements_that_no_longer_fit_are_refused_and_not_rounded(catalog):
    table = create_table(catalog, "lake.t", log_schema(), Layout.SORTED, num_buckets=2)
    write(table, [BATCH])
    with table.update_schema() as update:
        update.update_column("user_embedding.element", DoubleType())
    assert sum(batch.num_rows for batch in TableSource(table).batches()) == BATCH.num_rows
    append(table, user_embedding=[HUGE] * 4)
    for read in (lambda: list(TableSource(table).batches()), lambda: compact(table, force=True)):
        with pytest.raises(ValueError, match=r"user_embedding: .* the value 1e\+300 does not fit into float"):
            read()


@pytest.mark.slow
def test_promotion_reads_columns_that_swapped_their_names_by_field_id(catalog):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [COUNT])
    add_request_feature(main, side, of_request)
    for old, new in (("history_ts", "x"), ("history_item_id", "history_ts"), ("x", "history_item_id")):
        with main.update_schema() as update:
            update.rename_column(old, new)
    names = ("request_id", "history_item_id", "history_ts")
    order = [(name, "ascending") for name in names]
    before = main.scan(selected_fields=names).to_arrow().sort_by(order).to_pylist()
    promote(main, [side])
    assert main.refresh().scan(selected_fields=names).to_arrow().sort_by(order).to_pylist() == before


@pytest.mark.slow
def test_promotion_does_not_leave_a_column_of_others_behind(catalog):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [COUNT])
    add_request_feature(main, side, of_request)
    with main.update_schema() as update:
        update.add_column("extra", LongType())
    append(main, extra=7)
    before = scanned(main)
    with pytest.raises(ValueError, match=r"found extra, which another engine added and whose values would be lost"):
        promote(main, [side], missing="null")
    assert scanned(main) == before


@pytest.mark.slow
def test_feature_tables_keep_columns_of_others_or_name_them(catalog):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [COUNT, RATE])
    add_request_feature(main, side, lambda r: {"count": of_request(r), "rate": pa.array([0.5] * r.num_rows)})
    with side.update_schema() as update:
        update.add_column("extra", LongType())
        update.update_column("count", LongType())
    rows = side.scan().to_arrow()
    rows = rows.set_column(rows.schema.get_field_index("extra"), rows.schema.field("extra"), rows["request_id"])
    rows = rows.set_column(
        rows.schema.get_field_index("count"), rows.schema.field("count"), pc.add(rows["count"], 2**40)
    )
    side.overwrite(rows)
    wanted = scanned(side)
    for change in (lambda: realign(main, side), lambda: add_request_feature(main, side, of_request, columns=[COUNT])):
        with pytest.raises(ValueError, match=r"found extra, which another engine added"):
            change()
    rebucket(side, 8)
    assert scanned(side) == wanted
    user = rows["user_id"][0].as_py()
    wanted = without(side, user)
    delete_user(side, user)
    assert scanned(side) == wanted
    joined = bucket_join(main, side, columns=["count"])
    assert min(pa.Table.from_batches(joined.batches(["count"]))["count"].to_pylist()) > 2**40


@pytest.mark.slow
@pytest.mark.parametrize("delete", [delete_positions, delete_where_equal])
@pytest.mark.parametrize("by_position", [False, True])
def test_delete_files_of_a_feature_table_are_refused_by_whatever_reads_it(catalog, delete, by_position):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [SCORE, COUNT], by_position=by_position)
    add_request_feature(main, side, lambda r: {"count": of_request(r), "new_score": pa.array([1.0] * r.num_rows)})
    file = next(iter(side.refresh().scan().plan_files())).file
    if delete is delete_positions:
        delete_positions(side, {file.file_path: [0, 1]})
    else:
        delete_where_equal(side, "count", 3, file.partition)
    before = side.current_snapshot(), main.current_snapshot()
    reads = {
        "join": lambda: list(bucket_join(main, side).batches()),
        "promote": lambda: promote(main, [side], missing="null"),
        "realign": lambda: realign(main, side),
        "backfill": lambda: add_request_feature(main, side, of_request, columns=[COUNT]),
        "delete": lambda: delete_user([main, side], USER),
        "source": lambda: list(FeatureSource(side).batches()),
    }
    for name, read in reads.items():
        with pytest.raises((ValueError, NotImplementedError), match=r"(?i)delete"):
            read()
        assert (side.refresh().current_snapshot(), main.refresh().current_snapshot()) == before, name


@pytest.mark.slow
def test_a_deletion_is_refused_before_the_first_of_its_tables_is_touched(catalog):
    """What stands in the way in the last table is found before the first one is written."""
    main = main_table(catalog)
    user = main.scan().to_arrow()["user_id"][0].as_py()
    sides = [
        create_feature_table(catalog, f"lake.{name}", main, [column]) for name, column in (("a", COUNT), ("z", RATE))
    ]
    add_request_feature(main, sides[0], of_request)
    add_request_feature(main, sides[1], lambda r: pa.array([0.5] * r.num_rows))
    with sides[1].update_schema() as update:
        update.add_column("price", DecimalType(9, 2))
    before = [table.refresh().current_snapshot() for table in (main, *sides)]
    with pytest.raises(ValueError, match=r"lake\.z: .* price"):
        delete_user([main, *sides], user)
    assert [table.refresh().current_snapshot() for table in (main, *sides)] == before


def change_order(table) -> None:
    table.update_sort_order().asc("request_ts", IdentityTransform(), NullOrder.NULLS_FIRST).commit()


def claims_that_are_false(table) -> list[int]:
    found = []
    for task in table.refresh().scan().plan_files():
        order = table.sort_orders().get(task.file.sort_order_id)
        names = [table.schema().find_column_name(field.source_id) for field in order.fields] if order else []
        rows = pq.read_table(task.file.file_path.removeprefix("file://"), columns=names).to_pylist()
        values = [tuple(row.values()) for row in rows]
        if values != sorted(values):
            found.append(task.file.sort_order_id)
    return found


@pytest.mark.slow
def test_our_files_claim_the_order_that_they_have_whatever_another_engine_made_the_default(table):
    change_order(table)
    write(table, [BATCH], mode="append")
    assert not claims_that_are_false(table)
    compact(table, force=True)
    assert not claims_that_are_false(table)
    assert {task.file.sort_order_id for task in table.scan().plan_files()} == {1}
    assert check_sorted(table, KEYS) == 2


@pytest.mark.slow
def test_an_order_that_another_engine_claims_is_not_believed(table):
    rows = table.scan().to_arrow()
    rows = rows.take(np.random.default_rng(0).permutation(len(rows)))
    with table.transaction() as transaction:
        transaction.delete("true")
        with transaction.update_snapshot().fast_append() as snapshot:
            for file in _dataframe_to_data_files(table.metadata, rows, table.io):
                file[SORT_ORDER_ID] = table.sort_order().order_id
                snapshot.append_data_file(file)
    theirs = {task.file.file_path for task in table.refresh().scan().plan_files()}
    assert not TableSource(table).requests_whole
    write(table, [to_batch(make_log(num_users=2, seed=9))], mode="append")
    expire_snapshots(table, older_than=timedelta(0))  # whose commit it was is forgotten
    assert {file.path for file in live_files(table.refresh()) if not file.is_sorted} == theirs
    assert compact(table).buckets == (0, 1)
    assert checks.sort_order_true(table).ok
    assert compact(table).buckets == ()


@pytest.mark.parametrize("ours", [True, False])
def test_a_file_named_as_version_0_1_0_did_is_believed_if_our_commit_added_it(table, ours):
    old = [task.file for task in table.scan().plan_files()]
    for file in old:
        path = f"{file.file_path.rpartition('/')[0]}/{uuid.uuid4()}.parquet"
        shutil.copy(file.file_path.removeprefix("file://"), path.removeprefix("file://"))
        file[DATA_FILE_NAMES.index("file_path")] = path
    with table.transaction() as transaction:
        transaction.delete("true")
        with transaction.update_snapshot(
            snapshot_properties={"reqdedup.write-id": "x"} if ours else {}
        ).fast_append() as add:
            for file in old:
                add.append_data_file(file)
    assert TableSource(table.refresh()).requests_whole == ours
    assert {file.is_sorted for file in live_files(table)} == {ours}


def change_buckets(table, num_buckets: int = 3) -> None:
    with table.update_spec() as update:
        update.remove_field("user_bucket")
        update.add_field("user_id", BucketTransform(num_buckets), "by_number")


@pytest.mark.slow
def test_a_changed_bucket_count_is_followed_by_compaction_and_named_by_the_others(table):
    wanted = scanned(table)
    change_buckets(table)
    assert any("partition spec 0 of its files" in line for line in table_health(table).advice)
    with pytest.raises(ValueError, match=r"partition spec 0 of its files required by a deletion, found .* spec 1"):
        delete_user(table, USER)
    with pytest.raises(ValueError, match=r"all buckets at once required, since another engine changed"):
        compact(table, [0])
    report = compact(table)
    assert (report.rows, report.buckets) == (BATCH.num_rows, (0, 1, 2))
    assert scanned(table) == wanted
    assert all(check(table).ok for check in (checks.buckets_right, checks.sort_order_true, checks.requests_whole))
    assert compact(table).buckets == ()
    wanted = without(table, USER)
    delete_user(table, USER)
    assert scanned(table) == wanted


def test_another_kind_of_partitioning_is_named_before_anything_is_written(table):
    with table.update_spec() as update:
        update.add_field("device", IdentityTransform(), "by_device")
    before = table.current_snapshot()
    changes = {
        "append": lambda: write(table, [BATCH], mode="append"),
        "replace": lambda: write(table, [BATCH]),
        "compact": lambda: compact(table),
        "rebucket": lambda: rebucket(table, 4),
        "delete_user": lambda: delete_user(table, USER),
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=r"partition spec .*bucket.* required.*(identity\(device\)|by_device)"):
            change()
        assert table.refresh().current_snapshot() == before, name
    assert any("identity(device)" in line for line in table_health(table).advice)


@pytest.mark.slow
def test_a_feature_table_in_other_buckets_is_not_joined_by_the_wrong_count(catalog):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.side", main, [COUNT])
    add_request_feature(main, side, of_request)
    change_buckets(side, 2)
    joined = bucket_join(main, side.refresh(), how="left")
    assert not pa.Table.from_batches(joined.batches(["count"]))["count"].null_count
    with pytest.raises(ValueError, match=r"partition spec 0 of its files required by new features"):
        add_request_feature(main, side, of_request)
    rebucket(side, 8)
    joined = bucket_join(main, side.refresh(), how="left")
    assert not pa.Table.from_batches(joined.batches(["count"]))["count"].null_count
