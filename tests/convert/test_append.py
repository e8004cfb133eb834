"""Converted rows join a table that is there already: verified, in one commit, and refused where they do not fit."""

from __future__ import annotations

import pyarrow as pa
import pytest

from reqdedup.convert import conversion, convert_table
from reqdedup.storage import ConflictError, Layout, rebucket
from tests.convert.their_log import MAPPING, expected, folder_of, rows_in, their_rows


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.ARRIVAL])
def test_rows_are_appended_to_a_converted_table_in_one_commit(catalog, tmp_path, layout):
    rows = their_rows()
    days = [rows.slice(0, 60), rows.slice(60)]
    for name in ("first", "second", "other"):
        (tmp_path / name).mkdir()
    convert_table(folder_of(tmp_path / "first", days[0]), catalog, "test.ours", MAPPING, layout=layout, num_buckets=2)
    table = catalog.load_table("test.ours")
    second = folder_of(tmp_path / "second", days[1], num_files=1)
    report = convert_table(second, catalog, "test.ours", MAPPING, append=True)
    assert (report.rows, report.is_append, report.layout) == (len(rows) - 60, True, layout)
    assert len(table.refresh().metadata.snapshots) == 2
    assert rows_in(table) == expected(rows)

    other = days[1].drop_columns(["country"]).append_column("new", pa.array([1.0] * len(days[1])))
    other = other.set_column(other.column_names.index("rank"), "rank", other["rank"].cast(pa.float64()))
    other = folder_of(tmp_path / "other", other, num_files=1)
    wanted = r"no column for country; new has no place there; rank is float64 \(item\), there int32 \(item\)"
    for source_, options, message in [
        (other, {}, wanted),
        (second, {"layout": Layout.SHUFFLED}, "its layout .* required by an append, found shuffled"),
        (second, {"num_buckets": 3}, "buckets required by an append, found 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert_table(source_, catalog, "test.ours", MAPPING, append=True, **options)
    with pytest.raises(ValueError, match=r"test.nowhere: a table required to append to, found none"):
        convert_table(second, catalog, "test.nowhere", MAPPING, append=True)
    assert len(rows_in(table.refresh())) == len(rows)


@pytest.mark.slow
def test_ids_of_another_type_than_the_table_has_are_named_with_both(catalog, tmp_path):
    rows = their_rows(num_requests=6)
    name = MAPPING.user
    numbers = rows.set_column(rows.column_names.index(name), name, pa.array(range(len(rows)), pa.int64()))
    texts = rows.set_column(rows.column_names.index(name), name, pa.array([f"u{k}" for k in range(len(rows))]))
    paths = {}
    for kind, table in {"numbers": numbers, "texts": texts}.items():
        (tmp_path / kind).mkdir()
        paths[kind] = folder_of(tmp_path / kind, table, num_files=1)
        convert_table(paths[kind], catalog, f"test.{kind}", MAPPING, num_buckets=2)
    with pytest.raises(ValueError, match="found: user_id is string, there int64"):
        convert_table(paths["texts"], catalog, "test.numbers", MAPPING, append=True)
    with pytest.raises(ValueError, match=r"found: user_id is int64, there text \(user_key\)"):
        convert_table(paths["numbers"], catalog, "test.texts", MAPPING, append=True)


@pytest.mark.slow
def test_an_append_meets_a_rebucketed_table_with_a_conflict(catalog, tmp_path, monkeypatch):
    folder = folder_of(tmp_path, their_rows(num_requests=6))
    convert_table(folder, catalog, "test.ours", MAPPING, num_buckets=2)
    opened = conversion.open_for_append

    def and_rebucketed(*arguments):
        table = opened(*arguments)
        rebucket(catalog.load_table("test.ours"), 4)
        return table

    monkeypatch.setattr(conversion, "open_for_append", and_rebucketed)
    with pytest.raises(ConflictError, match="another writer changed the table"):
        convert_table(folder, catalog, "test.ours", MAPPING, append=True)
    assert len(catalog.load_table("test.ours").metadata.snapshots) == 2  # the conversion's and the rebucketing's


def batch_of(tmp_path, name, rows):
    (tmp_path / name).mkdir()
    return folder_of(tmp_path / name, rows, num_files=2)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.SORTED, Layout.SHUFFLED, Layout.ARRIVAL])
def test_rows_that_are_there_already_are_counted(catalog, tmp_path, layout):
    """Against plain rows, each looked for among all: the same day again, part of it, the same keys with another value, another day."""
    rows = their_rows()
    day, later = rows.slice(0, 100), rows.slice(100)
    changed = day.set_column(day.column_names.index("rank"), "rank", pa.array([500] * 100, pa.int16()))
    convert_table(batch_of(tmp_path, "day", day), catalog, "test.ours", MAPPING, layout=layout, num_buckets=2)
    table = catalog.load_table("test.ours")
    for name, batch in {
        "later": later,
        "again": day,
        "part": pa.concat_tables([day.slice(90), later.slice(0, 5)]),
        "changed": changed,
        "third": day,
    }.items():
        there = rows_in(table.refresh())
        repeated = sum(row in there for row in expected(batch))
        report = convert_table(batch_of(tmp_path, name, batch), catalog, "test.ours", MAPPING, append=True)
        assert report.repeated_rows == repeated, name
    assert report.repeated_rows == 100


@pytest.mark.slow
def test_rows_of_another_time_are_not_looked_for(catalog, tmp_path, monkeypatch):
    rows = their_rows()
    first, later = rows.slice(0, 60), rows.slice(60)
    cut = later["session"].to_pylist().index(later["session"][-1].as_py())
    later = later.slice(cut)  # one request, whose time no other has
    convert_table(batch_of(tmp_path, "first", first), catalog, "test.ours", MAPPING, num_buckets=2)

    def never(*arguments):
        raise AssertionError("a file was opened")

    monkeypatch.setattr("reqdedup.convert.repeats._in_both", never)
    assert convert_table(batch_of(tmp_path, "later", later), catalog, "test.ours", MAPPING, append=True).rows
    with pytest.raises(AssertionError, match="a file was opened"):
        convert_table(batch_of(tmp_path, "again", later), catalog, "test.ours", MAPPING, append=True)
