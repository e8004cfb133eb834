"""Backfilled features: one value per request, beside the main table, against DuckDB's view of the same files."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.schema import Column, Kind, Level
from reqdedup.storage import (
    FileSource,
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    recent_event_counts,
    write,
)
from reqdedup.storage.features import values
from reqdedup.storage.features.values import feature_array
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.read import buckets
from reqdedup.storage.read.feature_table import FeatureSource, feature_schema
from tests.storage.small_log import log_schema, make_log, to_batches

LOG = make_log(num_users=30, seed=4)
COUNT = Column(name="count", dtype="int32", level=Level.REQUEST, doc="a count", nullable=True)
SCORE = Column(name="score", dtype="float32", level=Level.REQUEST, nullable=True)
SEQUENCE = Column(name="sequence", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
VECTOR = Column(name="vector", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=3)


@pytest.fixture
def main(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 40)
    monkeypatch.setattr(buckets, "ROWS_TOGETHER", 0)
    table = create_table(catalog, "lake.main", log_schema(), Layout.BY_REQUEST, num_buckets=4)
    write(table, to_batches(LOG))
    return table


def paths(table: Table) -> list[str]:
    return [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.SORTED])
def test_recent_event_counts_are_those_that_sql_counts(catalog, layout):
    main = create_table(catalog, f"lake.{layout.value}", log_schema(), layout, num_buckets=2)
    write(main, to_batches(LOG))
    fat = create_table(catalog, "lake.fat", log_schema(), Layout.SHUFFLED)
    write(fat, to_batches(LOG))
    feature = recent_event_counts(3 * 24 * 3600)
    side = create_feature_table(catalog, "lake.features", main, [feature.column])
    report = add_request_feature(main, side, feature)
    expected = duckdb.sql(
        f"""select distinct user_id, request_id,
        len(list_filter(history_ts, lambda t: t * 1000 < epoch_us(request_ts)
            and t * 1000 >= epoch_us(request_ts) - 259200000000)) as n
        from read_parquet({paths(fat)}) order by all"""
    ).fetchall()
    found = duckdb.sql(
        f"select user_id, request_id, recent_event_count from read_parquet({paths(side)}) order by all"
    ).fetchall()
    assert found == expected
    assert len({n for _, _, n in found}) > 3
    assert report.requests == len(LOG) == len(found)
    snapshot = side.current_snapshot()
    assert snapshot.snapshot_id == report.snapshot_id
    assert snapshot.summary["reqdedup.main-snapshot"] == str(main.current_snapshot().snapshot_id)


def test_the_side_table_has_the_buckets_and_order_of_the_main_table(catalog, main, monkeypatch):
    monkeypatch.setattr(values, "ROW_GROUP_REQUESTS", 7)
    side = create_feature_table(catalog, "lake.features", main, [COUNT, SEQUENCE, VECTOR])
    seen = []

    def compute(requests: pa.RecordBatch) -> dict[str, object]:
        seen.append(requests)
        n = requests.num_rows
        return {
            "count": pa.array([None if i % 3 else i for i in range(n)]),
            "sequence": pa.array([[request] * (request % 4) for request in requests["request_id"].to_pylist()]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(3 * n, np.float32)), 3),
        }

    add_request_feature(main, side, compute, inputs=["device", "history_item_id"])
    assert {tuple(batch.schema.names) for batch in seen} == {("user_id", "request_id", "history_item_id", "device")}
    assert sum(batch.num_rows for batch in seen) == len(LOG)
    groups = FeatureSource(side).row_groups()
    assert len(groups) > 4
    for task in side.scan().plan_files():
        keys = pq.read_table(task.file.file_path.removeprefix("file://"), columns=["user_id", "request_id"])
        assert keys.to_pylist() == sorted(keys.to_pylist(), key=lambda k: (k["user_id"], k["request_id"]))
    found = duckdb.sql(f"select request_id, sequence, vector from read_parquet({paths(side)})").fetchall()
    assert {request: np.frombuffer(blob, "<i8").tolist() for request, blob, _ in found} == {
        r["request_id"]: [r["request_id"]] * (r["request_id"] % 4) for r in LOG
    }
    assert {blob for _, _, blob in found} == {np.ones(3, "<f4").tobytes()}
    assert side.schema().find_field("vector").doc == "3 little-endian float32; decode: np.frombuffer(blob, '<f4')"
    assert isinstance(FeatureSource(side), FileSource)


@pytest.mark.slow
def test_a_new_version_replaces_the_old_one_and_leaves_the_main_table_alone(catalog, main):
    side = create_feature_table(catalog, "lake.features", main, [COUNT])
    before = main.current_snapshot().snapshot_id
    add_request_feature(main, side, lambda requests: pa.array([1] * requests.num_rows))
    reader = bucket_join(main, side)
    add_request_feature(main, side, lambda requests: np.full(requests.num_rows, 2))
    assert {v for batch in bucket_join(main, side).batches() for v in batch["count"].to_pylist()} == {2}
    assert {v for batch in reader.batches() for v in batch["count"].to_pylist()} == {1}  # its snapshot, still
    assert main.refresh().current_snapshot().snapshot_id == before
    assert TableSource(main).num_rows == sum(len(request["items"]) for request in LOG)
    same = create_feature_table(catalog, "lake.features", main, [COUNT])
    assert same.current_snapshot().snapshot_id == side.current_snapshot().snapshot_id
    with pytest.raises(ValueError, match=r"in another form .columns vector required, found none"):
        create_feature_table(catalog, "lake.features", main, [VECTOR])
    assert feature_schema(catalog.load_table("lake.features")).features == (COUNT,)


def test_a_failing_computation_leaves_the_old_version_and_no_files(catalog, main):
    side = create_feature_table(catalog, "lake.features", main, [COUNT])
    add_request_feature(main, side, lambda requests: pa.array([1] * requests.num_rows))
    old = sorted(paths(side))
    calls = []

    def failing(requests: pa.RecordBatch) -> pa.Array:
        calls.append(requests.num_rows)
        if len(calls) == 3:
            raise OSError("the feature service is down")
        return pa.array([2] * requests.num_rows)

    with pytest.raises(OSError, match="feature service"):
        add_request_feature(main, side, failing)
    assert sorted(paths(side.refresh())) == old
    folder = side.location().removeprefix("file://")
    assert sorted(map(str, Path(folder).rglob("*.parquet"))) == old


@pytest.mark.slow
def test_bytes_of_an_embedding_stay_near_those_of_its_values_alone(catalog):
    requests = make_log(num_users=1500, seed=1, max_history=0, mean_fan_out=2)
    main = create_table(catalog, "lake.many", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(main, to_batches(requests, size=500))
    wide = Column(name="embedding", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=64)
    side = create_feature_table(catalog, "lake.wide", main, [wide])
    rng = np.random.default_rng(0)

    def embed(batch: pa.RecordBatch) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=64 * batch.num_rows).astype(np.float32)), 64)

    report = add_request_feature(main, side, embed)
    assert report.requests == len(requests)
    assert report.minimum_bytes > 0.9 * 256 * len(requests)
    assert report.ratio_to_minimum < 1.1
    on_disk = sum(pq.ParquetFile(path).metadata.serialized_size for path in paths(side))
    assert report.bytes - report.minimum_bytes - report.key_bytes < on_disk + 100 * report.files


def test_what_does_not_fit_is_refused(catalog, main):
    shuffled = create_table(catalog, "lake.shuffled", log_schema(), Layout.SHUFFLED)
    with pytest.raises(ValueError, match="bucket"):
        create_feature_table(catalog, "lake.f", shuffled, [COUNT])
    with pytest.raises(ValueError, match="found device taken"):
        create_feature_table(catalog, "lake.f", main, [Column(name="device", dtype="int32", level=Level.REQUEST)])
    with pytest.raises(ValueError, match="must be request-level, found item"):
        create_feature_table(catalog, "lake.f", main, [Column(name="x", dtype="int32", level=Level.ITEM)])
    with pytest.raises(ValueError, match="is no feature table"):
        create_feature_table(catalog, "lake.shuffled", main, [COUNT])
    side = create_feature_table(catalog, "lake.f", main, [COUNT])
    other = create_table(catalog, "lake.other", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    with pytest.raises(ValueError, match=r"2 buckets as in lake\.other required, found 4"):
        add_request_feature(other, side, recent_event_counts(60))
    with pytest.raises(ValueError, match=r"table property reqdedup\.features required"):
        add_request_feature(main, other, recent_event_counts(60))
    with pytest.raises(ValueError, match="click, which differ per row"):
        add_request_feature(main, side, recent_event_counts(60), inputs=["click"])
    with pytest.raises(ValueError, match=r"compute: \['count'\] required, found \['counts'\]"):
        add_request_feature(main, side, lambda requests: {"counts": [1]})
    with pytest.raises(ValueError, match="one per request, found 1"):
        add_request_feature(main, side, lambda requests: [1], inputs=[])


@pytest.mark.parametrize(
    ("returned", "column", "message"),
    [
        ([None], VECTOR, "no nulls allowed"),
        ([[1.0, 2.0]], VECTOR, r"3 elements each required, found \{2\}"),
        (["many"], COUNT, "scalar of int32 required"),
        ([1e300], SCORE, "feature score: values of float32 required, found 1e[+]300"),
        ([-1e39], SCORE, "feature score: values of float32 required, found -1e[+]39"),
        ([[1e300, 0.0, 0.0]], VECTOR, "does not fit into float"),
        ([2**40], COUNT, "scalar of int32 required"),
        ([b"123"], SEQUENCE, "multiple of 8 bytes"),
    ],
)
def test_values_of_the_wrong_form_are_refused(returned, column, message):
    with pytest.raises(ValueError, match=message):
        feature_array(pa.array(returned), column, 1)


def test_infinity_and_nan_that_a_function_returned_stay():
    found = feature_array(pa.array([np.inf, -np.inf, np.nan, None, 0.1]), SCORE, 5)
    np.testing.assert_array_equal(found.to_numpy(zero_copy_only=False)[:3], [np.inf, -np.inf, np.nan])
    assert found[3:].to_pylist() == [None, float(np.float32(0.1))]


@pytest.mark.parametrize("returned", [None, {"count": None}])
def test_a_function_that_returns_nothing_is_told_so(catalog, main, returned):
    side = create_feature_table(catalog, "lake.none", main, [COUNT])
    with pytest.raises(ValueError, match=r"(compute|feature count): .*values.* required.*found None"):
        add_request_feature(main, side, lambda requests: returned)
