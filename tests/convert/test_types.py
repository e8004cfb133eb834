"""Columns of awkward types: read where they have a meaning, else refused by name, all of them at once."""

from __future__ import annotations

import decimal
import re
import uuid
from dataclasses import replace

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField, TimestampType, UUIDType

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.logs.ids import hash_string
from reqdedup.schema import Level
from reqdedup.storage import TableSource, compact
from reqdedup.storage.foreign.leaves import uuid_text

IDS = [uuid.UUID(int=number**7) for number in (1, 1, 123456, 7)]
MAPPING = ColumnMapping(user="user", request="request", item="item", time="at")


def uuids(values) -> pa.Array:
    storage = pa.array([None if value is None else value.bytes for value in values], pa.binary(16))
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def plain(**columns) -> pa.Table:
    rows = {
        "user": pa.array(["a", "a", "b", "c"]),
        "request": pa.array([1, 1, 2, 3]),
        "item": pa.array([5, 6, 7, 8]),
        "at": pa.array([0, 0, 1, 2], pa.timestamp("us")),
    }
    return pa.table(rows | columns)


def converted(catalog, rows: pa.Table, path) -> list[dict]:
    pq.write_table(rows, path)
    convert_table(str(path), catalog, "lake.t", MAPPING)
    batches = TableSource(catalog.load_table("lake.t")).batches()
    return sorted((row for batch in batches for row in batch.to_pylist()), key=lambda row: row["item_id"])


def test_uuids_are_text(catalog, tmp_path):
    rows = plain(user=uuids(IDS), token=uuids([None, None, *IDS[2:]]))
    found = converted(catalog, rows, tmp_path / "f.parquet")
    assert [row["user_key"] for row in found] == [str(one) for one in IDS]
    assert [row["user_id"] for row in found] == [hash_string(str(one)) for one in IDS]
    assert [row["token"] for row in found] == [None, None, *map(str, IDS[2:])]
    lists = pa.array([[IDS[0].bytes, IDS[3].bytes], None, []], pa.list_(pa.binary(16)))
    assert uuid_text(lists).to_pylist() == [[str(IDS[0]), str(IDS[3])], None, []]
    assert uuid_text(lists.slice(2).flatten()).to_pylist() == []


def test_uuids_of_an_iceberg_table_are_text(catalog):
    catalog.create_namespace("a")
    fields = {"user": UUIDType(), "request": LongType(), "item": LongType(), "at": TimestampType()}
    schema = Schema(*(NestedField(number, name, kind) for number, (name, kind) in enumerate(fields.items(), start=1)))
    theirs = catalog.create_table("a.theirs", schema)
    theirs.append(plain(user=uuids(IDS)))
    assert convert_table(theirs, catalog, "lake.t", MAPPING).compared_with == "pyiceberg's own scan"
    (batch,) = TableSource(catalog.load_table("lake.t")).batches()
    assert set(batch["user_key"].to_pylist()) == {str(one) for one in IDS}


def test_columns_without_a_place_are_named_together_with_the_exclude_that_takes_the_rest(catalog, tmp_path):
    rows = plain(
        nothing=pa.nulls(4),
        how_long=pa.array([1] * 4, pa.duration("s")),
        wide=pa.array([decimal.Decimal("1.25")] * 4, pa.decimal256(60, 2)),
        ok=pa.array([1.5] * 4, pa.float16()),
    )
    pq.write_table(rows, tmp_path / "f.parquet")
    with pytest.raises(
        ValueError,
        match=r"found without a type there: how_long \(duration\[s\]\), wide \(decimal256\(60, 2\)\), nothing "
        r"\(null\).*--exclude how_long wide nothing$",
    ):
        convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING)
    wrong = ColumnMapping(user="how_long", request="request", item="wide", time="at")
    with pytest.raises(ValueError, match=r"key columns of .*found how_long \(duration\[s\]\), wide \(decimal256"):
        convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", wrong)
    assert not catalog.table_exists("lake.t")
    report = convert_table(
        str(tmp_path / "f.parquet"), catalog, "lake.t", replace(MAPPING, exclude=["how_long", "wide", "nothing"])
    )
    assert report.left_out == ("how_long", "wide", "nothing")
    assert "ok: half-precision numbers (float16) as float32" in report.changes


def test_intervals_have_no_type_there_though_arrow_reads_their_bytes(catalog, tmp_path):
    rows = plain(extra=pa.array([{"n": 1}] * 4))  # noqa: F841 - the query below names it
    path = f"{tmp_path}/f.parquet"
    duckdb.sql(f"copy (select extra, *, interval 3 days pause, [interval 1 day] pauses from rows) to '{path}'")
    with pytest.raises(ValueError, match=r"there: pause \(interval\), pauses \(interval\);.*--exclude pause pauses$"):
        convert_table(path, catalog, "lake.t", MAPPING)
    assert not catalog.table_exists("lake.t")
    assert convert_table(path, catalog, "lake.t", replace(MAPPING, exclude=["pause", "pauses"])).rows == 4


@pytest.mark.parametrize("name", ["user", "request", "item"])
def test_ids_of_64_bits_without_a_sign_are_told_what_to_do(catalog, tmp_path, name):
    rows = plain()
    ids = pa.array([1, 2, 2**63, 2**64 - 1], pa.uint64())
    rows = rows.set_column(rows.column_names.index(name), name, ids)
    pq.write_table(rows, tmp_path / "f.parquet")
    wanted = rf"column {name} as int64 required at row 3: whole numbers below 2\^63 required, found {2**64 - 1}; "
    wanted += "cast .*ids to text"
    with pytest.raises(ValueError, match=wanted):
        convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING)
    if name == "request":  # as a part of a key it is hashed, whatever its size
        together = replace(MAPPING, request=["user", "request"], exclude=["request"])
        assert convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", together).requests == 4
    pq.write_table(rows.set_column(rows.column_names.index(name), name, ids.cast(pa.string())), tmp_path / "g.parquet")
    assert convert_table(str(tmp_path / "g.parquet"), catalog, "lake.u", MAPPING).rows == 4


def test_a_null_in_a_key_of_text_is_told_without_an_exclude_of_that_key(catalog, tmp_path):
    rows = plain(user=["a", None, "b", "b"], fine=pa.array([1, 2, 3, 4], pa.time64("ns")))
    pq.write_table(rows, tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"column user as string required at row 2: no nulls.*--exclude fine$"):
        convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING)


def test_times_that_differ_within_a_request_are_told_as_times(catalog, tmp_path):
    rows = plain(at=pa.array([1, 2, 3, 4], pa.timestamp("us", "UTC")), request=[1, 1, 1, 1], user=[1, 1, 1, 1])
    pq.write_table(rows, tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"found 1970-01-01 00:00:00.000001\+00:00 .* and 1970-01-01 00:00:00.000002"):
        convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING)


def test_categories_as_polars_writes_them_are_text(catalog, tmp_path):
    """Their dictionaries are numbered by unsigned integers."""
    theirs = ["x", None, "y", "x"]
    category = pl.Series(theirs, dtype=pl.Categorical), pl.Series(theirs, dtype=pl.Enum(["x", "y"]))
    rows = pl.from_arrow(plain()).with_columns(category[0].alias("free"), category[1].alias("listed"))
    rows.write_parquet(tmp_path / "f.parquet")
    report = convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING)
    assert "free, listed: categories as plain string values" in report.changes
    found = pl.from_arrow(catalog.load_table("lake.t").scan().to_arrow()).sort("item_id")
    assert found["free"].to_list() == found["listed"].to_list() == theirs


def test_two_columns_of_one_name_are_refused_by_file_and_name(catalog, tmp_path):
    rows = plain()
    twice = pa.Table.from_arrays([*rows.columns, pa.array([1] * 4)], names=[*rows.column_names, "item"])
    with pytest.raises(ValueError, match=r"f\.parquet: one column per name required, found item more than once"):
        converted(catalog, twice, tmp_path / "f.parquet")


def test_a_whole_number_that_the_wider_column_of_another_file_cuts_is_named(catalog, tmp_path):
    pq.write_table(plain(x=pa.array([1, 2, 3, 2**53 + 1])), tmp_path / "a.parquet")
    pq.write_table(plain(x=pa.array([0.5] * 4)), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: column x as float64 required at row 4: .*9007199254740993"):
        convert_table(str(tmp_path), catalog, "lake.t", MAPPING)
    assert not catalog.table_exists("lake.t")


@pytest.mark.slow
def test_times_beyond_the_years_of_python_arrive_and_are_kept(catalog, tmp_path):
    """pyiceberg makes the bounds of a file of Python's datetimes, which end at the years 1 and 9999."""
    far = pa.array([-(10**17), 2**62, 0, None], pa.timestamp("us", tz="UTC"))
    pq.write_table(plain(far=far), tmp_path / "f.parquet")
    convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING, num_buckets=1)
    table = catalog.load_table("lake.t")
    assert table.scan().to_arrow().sort_by("item_id")["far"].combine_chunks().equals(far)
    (task,) = table.scan().plan_files()
    far_id, item_id = (table.schema().find_field(name).field_id for name in ("far", "item_id"))
    assert item_id in task.file.lower_bounds
    assert far_id not in task.file.lower_bounds
    assert task.file.null_value_counts[far_id] == 1
    convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING, append=True)
    table.refresh()
    compact(table)
    assert (
        sorted(table.scan().to_arrow()["far"].cast(pa.int64()).drop_null().to_pylist())
        == [-(10**17)] * 2 + [0] * 2 + [2**62] * 2
    )


def test_the_sign_of_zero_is_a_value(catalog, tmp_path):
    """The checksum sees it: a request has one, and rows keep theirs."""
    rows = plain(x=pa.array([0.0, -0.0, -0.0, 0.0]))
    found = converted(catalog, rows, tmp_path / "f.parquet")
    assert [repr(row["x"]) for row in found] == ["0.0", "-0.0", "-0.0", "0.0"]
    wrong = ColumnMapping(user="user", request="request", item="item", time="at", levels={"x": Level.REQUEST})
    with pytest.raises(ValueError, match=r"column x: one value per request required, found 0\.0 .* and -0\.0"):
        convert_table(str(tmp_path / "f.parquet"), catalog, "lake.u", wrong)


def test_bytes_that_are_no_text_are_named_with_their_row(catalog, tmp_path):
    bad = pa.array([b"a", b"a", b"\xff\xfe", b"c"]).view(pa.string())
    rows = plain(user=bad, note=bad, nested=pa.StructArray.from_arrays([bad], ["of"]))
    pq.write_table(rows, tmp_path / "f.parquet")
    expected = rf"column user as .*found {re.escape(repr(bytes([255, 254])))} at row 3.*"
    expected += "column note as .*column nested.of as .*"
    with pytest.raises(ValueError, match=expected):
        convert_table(str(tmp_path / "f.parquet"), catalog, "lake.t", MAPPING)
    assert not catalog.table_exists("lake.t")
