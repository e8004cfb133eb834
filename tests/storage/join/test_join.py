"""Bucket joins of real tables against DuckDB, which reads the same snapshots' files and hashes."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.dedup.encoding import BLOB_TYPE, check_deduplicated
from reqdedup.dedup.streams import ROW_KEY
from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.storage import (
    Layout,
    TableSource,
    bucket_join,
    create_feature_table,
    create_table,
    write,
)
from reqdedup.storage.features import add_request_feature
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.join.merge import JoinCounts
from reqdedup.storage.read import buckets
from tests.storage.small_log import log_schema, make_log, to_batch, to_batches

LOG = make_log(num_users=30, seed=2)
LATE_SCHEMA = EngagementSchema(
    (
        *(log_schema()[name] for name in (*ROW_KEY, "request_ts")),
        Column(name="purchase", dtype="int32", level=Level.LABEL),
        Column(name="rating", dtype="float32", level=Level.ITEM, nullable=True),
    )
)
FEATURES = (
    Column(name="history_length", dtype="int32", level=Level.REQUEST),
    Column(
        name="mean_embedding", dtype="float32", level=Level.REQUEST, kind=log_schema()["user_embedding"].kind, width=4
    ),
)


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    """Several row groups in every file, so that both sides of a join have to be cut."""
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 60)
    monkeypatch.setattr(buckets, "ROWS_TOGETHER", 0)


def late_batch(requests: list[dict], *, every: int = 1) -> pa.RecordBatch:
    """Late labels for the rows of a log, of which only every so many-th has arrived."""
    rows = to_batch(requests).select([*ROW_KEY, "request_ts"])
    rows = rows.take(pa.array(np.arange(0, rows.num_rows, every)))
    purchase = pa.array((rows["item_id"].to_numpy() % 2).astype(np.int32))
    rating = pa.array(rows["item_id"].to_numpy() % 5, pa.float32(), mask=rows["item_id"].to_numpy() % 3 == 0)
    fields = [*rows.schema, pa.field("purchase", pa.int32(), nullable=False), pa.field("rating", pa.float32())]
    return pa.RecordBatch.from_arrays([*rows.columns, purchase, rating], schema=pa.schema(fields))


def main_table(
    catalog: Catalog, *, layout: Layout = Layout.BY_REQUEST, num_buckets: int = 4, name: str = "main"
) -> Table:
    table = create_table(catalog, f"lake.{name}", log_schema(), layout, num_buckets=num_buckets)
    write(table, to_batches(LOG))
    return table


def late_table(catalog: Catalog, requests: list[dict], *, num_buckets: int = 4, every: int = 1) -> Table:
    table = create_table(catalog, "lake.late", LATE_SCHEMA, Layout.BY_REQUEST, num_buckets=num_buckets)
    write(table, [late_batch(requests, every=every)])
    return table


def feature_table(catalog: Catalog, main: Table) -> Table:
    def compute(requests: pa.RecordBatch) -> dict[str, pa.Array]:
        ids = requests["request_id"].to_numpy()
        vectors = np.repeat(ids, 4).astype(np.float32)
        return {
            "history_length": pa.array((ids % 100).astype(np.int32)),
            "mean_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 4),
        }

    side = create_feature_table(catalog, "lake.features", main, FEATURES)
    add_request_feature(main, side, compute, inputs=["device"])
    return side


def files(table: Table) -> str:
    return str([task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()])


def sql_rows(
    left: Table, right: Table, on: Sequence[str], how: str, added: Sequence[str], order: Sequence[str]
) -> list:
    names = [*(f"l.{name}" for name in TableSource(left).schema.names), *(f"r.{name}" for name in added)]
    return duckdb.sql(
        f"""select {", ".join(names)} from read_parquet({files(left)}) l {how} join read_parquet({files(right)}) r
        using ({", ".join(on)}) order by {", ".join(f"l.{name}" for name in order)}"""
    ).fetchall()


def rows(batches: Sequence[pa.RecordBatch], *, order: Sequence[str] = ROW_KEY) -> list:
    table = pa.Table.from_batches(batches)
    table = pa.table(
        {n: c.cast(pa.binary()) if c.type == BLOB_TYPE else c for n, c in zip(table.column_names, table.columns)}
    ).sort_by([(name, "ascending") for name in order])
    return list(zip(*(column.to_pylist() for column in table.columns)))


@pytest.mark.slow
@pytest.mark.parametrize(("left_buckets", "right_buckets"), [(4, 4), (2, 8), (8, 2), (1, 4)])
@pytest.mark.parametrize("how", ["inner", "left"])
def test_late_labels_joined_by_item_are_those_of_sql(catalog, how, left_buckets, right_buckets):
    main = main_table(catalog, num_buckets=left_buckets)
    late = late_table(catalog, LOG[3:], num_buckets=right_buckets, every=3)
    join = bucket_join(main, late, on=ROW_KEY, how=how, columns=["purchase", "rating"])
    batches = list(join.batches())
    assert rows(batches) == sql_rows(main, late, ROW_KEY, how, ["purchase", "rating"], ROW_KEY)
    for batch in batches:
        check_deduplicated(batch, join.schema)
        batch.validate(full=True)
    assert join.schema["purchase"].level is Level.LABEL
    assert join.schema["purchase"].nullable == (how == "left")
    assert len(TableSource(main).row_groups()) > 2 * left_buckets
    num_rows = TableSource(main).num_rows
    assert join.counts == JoinCounts(
        left_rows=num_rows,
        matched_rows=TableSource(late).num_rows,
        missing_rows=num_rows - TableSource(late).num_rows,
        right_rows=TableSource(late).num_rows,
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.SORTED, Layout.SORTED_LARGE_PAGES])
def test_features_of_a_request_reach_all_its_rows_in_any_sorted_layout(catalog, layout):
    main = main_table(catalog, layout=layout)
    join = bucket_join(main, feature_table(catalog, main))
    assert join.schema.names == (*log_schema().names, "history_length", "mean_embedding")
    batches = list(join.batches())
    assert sum(batch.num_rows for batch in batches) == sum(len(request["items"]) for request in LOG)
    for batch in batches:
        check_deduplicated(batch, join.schema)
        ids = batch["request_id"].to_numpy()
        np.testing.assert_array_equal(batch["history_length"], ids % 100)
        vectors = np.frombuffer(b"".join(batch["mean_embedding"].to_pylist()), "<f4").reshape(-1, 4)
        np.testing.assert_array_equal(vectors, np.repeat(ids, 4).reshape(-1, 4).astype(np.float32))
        assert len(batch["mean_embedding"].dictionary) <= len(set(ids))
    by_key = {(b["user_id"][i].as_py(), b["item_id"][i].as_py()): i for b in batches for i in range(b.num_rows)}
    assert len(by_key) == len({(r["user_id"], item) for r in LOG for item in r["items"].tolist()})


@pytest.mark.slow
def test_a_left_join_fills_missing_requests_and_counts_them(catalog):
    main = main_table(catalog)
    side = feature_table(catalog, main)
    newer = make_log(num_users=10, seed=9)
    write(main, to_batches(newer), mode="append")
    join = bucket_join(main, side, how="left")
    missing = {request["request_id"] for request in newer}
    for batch in join.batches():
        check_deduplicated(batch, join.schema)
        absent = np.isin(batch["request_id"].to_numpy(), list(missing))
        assert [v is None for v in batch["history_length"].to_pylist()] == absent.tolist()
        assert all((v == bytes(16)) == a for v, a in zip(batch["mean_embedding"].to_pylist(), absent))
    assert join.counts.missing_rows == sum(len(request["items"]) for request in newer)
    assert join.counts.unused_right_keys == 0
    inner = bucket_join(main, side)
    assert sum(batch.num_rows for batch in inner.batches()) == join.counts.matched_rows


@pytest.mark.slow
def test_files_of_appended_days_are_merged_in_order(catalog):
    table = create_table(catalog, "lake.days", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    for day in range(3):
        write(table, to_batches(LOG[day::3]), mode="append")
    late = create_table(catalog, "lake.late_days", LATE_SCHEMA, Layout.BY_REQUEST, num_buckets=4)
    for day in range(2):
        write(late, [late_batch(LOG[day::2])], mode="append")
    join = bucket_join(table, late, on=ROW_KEY, columns=["purchase"])
    batches = list(join.batches())
    assert rows(batches) == sql_rows(table, late, ROW_KEY, "inner", ["purchase"], ROW_KEY)
    assert join.counts.missing_rows == join.counts.unused_right_keys == 0
    keys = pa.Table.from_batches(batches).select(["user_id", "request_id"]).to_pylist()
    stretches = [k for i, k in enumerate(keys) if i == 0 or keys[i - 1] != k]
    assert len(stretches) == len(LOG)  # every request in one stretch


@pytest.mark.slow
def test_threads_change_neither_rows_nor_order_nor_counts(catalog):
    main = main_table(catalog, num_buckets=8)
    side = feature_table(catalog, main)
    one, three = bucket_join(main, side), bucket_join(main, side, threads=3)
    assert [batch.to_pylist() for batch in three.batches()] == [batch.to_pylist() for batch in one.batches()]
    assert three.counts == one.counts
    for _ in three.batches():  # leaving early stops the workers
        break
    assert pa.Table.from_batches(three.batches()).num_rows == one.counts.left_rows


@pytest.mark.slow
def test_an_error_in_a_thread_reaches_the_reader(catalog):
    main = main_table(catalog, num_buckets=4)
    late = late_table(catalog, LOG)
    with pytest.raises(ValueError, match=r"lake\.late: every .* more than once"):
        list(bucket_join(main, late, columns=[], threads=2).batches())


@pytest.mark.slow
def test_joins_can_be_joined_again(catalog):
    main = main_table(catalog, num_buckets=4)
    late = late_table(catalog, LOG, num_buckets=2)
    twice = bucket_join(bucket_join(main, feature_table(catalog, main)), late, on=ROW_KEY, columns=["purchase"])
    batches = list(twice.batches(["purchase", "history_length", "item_id", "request_id"]))
    assert batches[0].schema.names == ["request_id", "item_id", "history_length", "purchase"]
    table = pa.Table.from_batches(batches)
    assert table["history_length"].to_pylist() == [i % 100 for i in table["request_id"].to_pylist()]
    assert table["purchase"].to_pylist() == [i % 2 for i in table["item_id"].to_pylist()]
    assert table.num_rows == TableSource(main).num_rows


@pytest.mark.slow
def test_chosen_columns_and_users_are_exactly_what_comes(catalog):
    main = main_table(catalog)
    join = bucket_join(main, feature_table(catalog, main))
    wanted = sorted({request["user_id"] for request in LOG})[::4]
    batches = list(join.batches(["mean_embedding", "user_id", "click"], users=wanted))
    everything = pa.Table.from_batches(join.batches())
    expected = everything.filter(pa.array(np.isin(everything["user_id"], wanted)))
    assert batches[0].schema.names == ["user_id", "click", "mean_embedding"]
    assert (
        pa.Table.from_batches(batches).to_pylist()
        == expected.select(["user_id", "click", "mean_embedding"]).to_pylist()
    )
    assert not list(join.batches(users=[1]))
    with pytest.raises(ValueError, match="no such columns: clicks"):
        list(join.batches(["clicks"]))


@pytest.mark.slow
def test_an_empty_side_is_an_empty_or_a_missing_join(catalog):
    main = main_table(catalog)
    empty = create_table(catalog, "lake.empty", LATE_SCHEMA, Layout.BY_REQUEST, num_buckets=4)
    assert not list(bucket_join(main, empty, on=ROW_KEY, columns=["purchase"]).batches())
    left = bucket_join(main, empty, on=ROW_KEY, columns=["purchase"], how="left")
    assert (
        pa.Table.from_batches(left.batches())["purchase"].null_count
        == left.counts.missing_rows
        == left.counts.left_rows
    )
    late = late_table(catalog, LOG)
    nothing = bucket_join(empty, late, on=ROW_KEY, columns=[])
    assert not list(nothing.batches())
    assert nothing.counts.unused_right_keys == TableSource(late).num_rows


@pytest.mark.slow
def test_tables_that_cannot_be_joined_say_what_is_missing(catalog):
    main = main_table(catalog)
    late = late_table(catalog, LOG)
    shuffled = create_table(catalog, "lake.shuffled", log_schema(), Layout.SHUFFLED)
    with pytest.raises(
        ValueError, match=r"lake\.shuffled: a bucket join needs partitioning by bucket\(N, user_id\).*sort"
    ):
        bucket_join(shuffled, late)
    with pytest.raises(ValueError, match=r"lake\.shuffled"):
        bucket_join(main, shuffled)
    with pytest.raises(ValueError, match=r"divide each other, found 4 in lake\.main and 3 in lake\.three"):
        bucket_join(
            main, create_table(catalog, "lake.three", LATE_SCHEMA, Layout.BY_REQUEST, num_buckets=3), columns=[]
        )
    with pytest.raises(ValueError, match=r"lake\.features: a bucket join needs the sort order"):
        bucket_join(main, feature_table(catalog, main), on=ROW_KEY)
    with pytest.raises(ValueError, match=r"columns of lake\.late that the left side has too: request_ts"):
        bucket_join(main, late, on=ROW_KEY)
    with pytest.raises(ValueError, match=r"purchase of lake\.late differ per row"):
        bucket_join(main, late, columns=["purchase"])
    with pytest.raises(ValueError, match="no such columns: nothing"):
        bucket_join(main, late, columns=["nothing"])
    with pytest.raises(ValueError, match="how must be one of"):
        bucket_join(main, late, how="outer")
    with pytest.raises(ValueError, match="after a pass"):
        _ = bucket_join(main, late, columns=[], on=ROW_KEY).counts
