"""Engines that know nothing of this library see the same rows, and decode blobs with the line the table carries."""

from __future__ import annotations

import json
from collections import Counter

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from reqdedup.schema import Column, Kind, Level
from reqdedup.storage import Layout, WriteSettings, create_table, write
from reqdedup.storage.iceberg.decode import decoders
from reqdedup.storage.iceberg.layout import DECODE_PROPERTY
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import files_of, new_table

SEQUENCES = ("history_item_id", "history_action", "history_ts", "user_embedding")


def expected_rows() -> list[dict]:
    """The log as plain Python, lists spelled out row by row."""
    dtypes = {column.name: np.dtype(column.dtype).newbyteorder("<") for column in log_schema().blobs}
    rows = [row for batch in to_batches(make_log()) for row in batch.to_pylist()]
    for row in rows:
        for name, dtype in dtypes.items():
            row[name] = np.frombuffer(row[name], dtype).tolist()
    return sorted(rows, key=row_key)


def row_key(row: dict) -> tuple:
    return row["user_id"], row["request_id"], row["item_id"]


def in_order(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=row_key)


def by_duckdb(table, layout: Layout) -> list[dict]:
    select = "*"
    if layout.has_blobs:
        lines = json.loads(table.properties[DECODE_PROPERTY])
        select += " REPLACE (" + ", ".join(lines[name]["duckdb"] + f" AS {name}" for name in SEQUENCES) + ")"
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    paths = ", ".join(f"'{path}'" for path in files_of(table))
    found = con.sql(f"SELECT {select} FROM read_parquet([{paths}], hive_partitioning = false)").to_arrow_table()
    return in_order(found.to_pylist())


def by_polars(table, layout: Layout) -> list[dict]:
    frame = pl.scan_iceberg(table).collect()
    if layout.has_blobs:
        lines = json.loads(table.properties[DECODE_PROPERTY])
        frame = frame.with_columns(eval(lines[name]["polars"], {"pl": pl, "np": np}).alias(name) for name in SEQUENCES)
    return in_order(frame.to_dicts())


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_duckdb_sees_the_same_rows(catalog, layout):
    table = new_table(catalog, layout)
    write(table, to_batches(make_log()))
    assert by_duckdb(table, layout) == expected_rows()


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_polars_sees_the_same_rows(catalog, layout, monkeypatch):
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    table = new_table(catalog, layout)
    write(table, to_batches(make_log()))
    assert by_polars(table, layout) == expected_rows()


@pytest.mark.slow
def test_a_bucket_of_several_files_is_read_whole_and_pruned_by_user(catalog, monkeypatch):
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    settings = WriteSettings(row_group_rows=40, file_bytes=4_000)
    table = create_table(catalog, "test.several", log_schema(), Layout.BY_REQUEST, num_buckets=2, settings=settings)
    write(table, to_batches(make_log()))
    tasks, rows = list(table.scan().plan_files()), expected_rows()
    assert min(Counter(task.file.partition[0] for task in tasks).values()) > 2
    assert by_duckdb(table, Layout.BY_REQUEST) == rows
    assert by_polars(table, Layout.BY_REQUEST) == rows
    for user in {row["user_id"] for row in rows}:
        wanted = [row["item_id"] for row in rows if row["user_id"] == user]
        frame = pl.scan_iceberg(table).filter(pl.col("user_id") == user).select("item_id").collect()
        scan = table.scan(row_filter=f"user_id == {user}", selected_fields=("item_id",))
        assert sorted(frame["item_id"].to_list()) == sorted(scan.to_arrow()["item_id"].to_pylist()) == sorted(wanted)
        assert len(list(scan.plan_files())) < len(tasks) / 2, "a file says which users it has"


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_pyiceberg_sees_the_same_rows(catalog, layout):
    table = new_table(catalog, layout)
    write(table, to_batches(make_log()))
    found = table.scan().to_arrow(dictionary_columns=SEQUENCES if layout.has_blobs else ())
    if layout.has_blobs:
        lines = json.loads(table.properties[DECODE_PROPERTY])
        for name in SEQUENCES:
            array = found.column(name).unify_dictionaries().combine_chunks()
            assert pa.types.is_dictionary(array.type), "the dedup index arrives untouched"
            decoded = eval(lines[name]["pyarrow"], {"pa": pa, "np": np, "array": array})
            found = found.set_column(found.schema.get_field_index(name), name, decoded)
    assert in_order(found.to_pylist()) == expected_rows()


@pytest.mark.slow
def test_pruning_by_user_finds_every_row(catalog):
    """A wrong bucket or wrong bounds would lose rows here, silently."""
    table = new_table(catalog, Layout.BY_REQUEST)
    write(table, to_batches(make_log()))
    rows = expected_rows()
    for user in {row["user_id"] for row in rows}:
        scan = table.scan(row_filter=f"user_id == {user}", selected_fields=("item_id",))
        assert len(list(scan.plan_files())) == 1
        found = sorted(scan.to_arrow().column("item_id").to_pylist())
        assert found == sorted(row["item_id"] for row in rows if row["user_id"] == user)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_every_decoder_decodes_every_number_type(dtype):
    column = Column(name="x", dtype=dtype, level=Level.REQUEST, kind=Kind.SEQUENCE)
    extremes = np.array([0, 1, -1, 255, 256, -(2**31), 2**31 - 1], dtype)
    if dtype != "int32":
        extremes = np.append(extremes, np.array([2**63 - 1 if dtype == "int64" else np.inf, -(2**62)]).astype(dtype))
    values = [extremes, extremes[:0], extremes[:1]]
    array = pa.array([value.astype(value.dtype.newbyteorder("<")).tobytes() for value in values])
    lines, wanted = decoders(column), [value.tolist() for value in values]
    names = {"np": np, "pa": pa, "pl": pl, "array": array}
    assert [eval(lines["numpy"], {**names, "blob": blob}).tolist() for blob in array.to_pylist()] == wanted
    assert eval(lines["pyarrow"], names).to_pylist() == wanted
    assert pl.DataFrame({"x": array}).select(eval(lines["polars"], names))["x"].to_list() == wanted
    blobs = pa.table({"x": array})
    con = duckdb.connect()
    con.register("blobs", blobs)
    assert [row[0] for row in con.execute(f"SELECT {lines['duckdb']} FROM blobs").fetchall()] == wanted


def test_the_table_explains_its_blobs(catalog):
    table = new_table(catalog, Layout.BY_REQUEST)
    for name in SEQUENCES:
        assert "np.frombuffer(blob" in table.schema().find_field(name).doc
    assert table.schema().find_field("device").doc == "device of the test log"
    assert set(json.loads(table.properties[DECODE_PROPERTY])) == set(SEQUENCES)
