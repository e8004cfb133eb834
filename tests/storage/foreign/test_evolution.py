"""Iceberg's columns are found by field id at every level: every value and name as in pyiceberg's own scan."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.table import Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.storage.foreign.leaves import Shape
from reqdedup.storage.foreign.source import RowSource
from tests.storage.foreign.evolution import evolved_table, memory_catalog


def leaf_value(row: dict[str, Any], path: list[str]) -> Any:
    """What a leaf of a row of pyiceberg's scan is: a scalar, or a list of what is at the path in each element."""
    value: Any = row
    for position, name in enumerate(path):
        if isinstance(value, list):
            return [leaf_value(element, path[position:]) for element in value]
        if value is None:
            return None
        value = value[name]
    return value


def check(table: Table) -> None:
    source = RowSource(table)
    theirs = {row["row"]: row for row in table.scan().to_arrow().to_pylist()}
    for pieces in (source.pieces, source.independent_pieces):
        ours: dict[int, dict[str, Any]] = {}
        for piece in pieces(list(source.leaves)):
            columns = {name: array.to_pylist() for name, array in piece.arrays.items()}
            for row, number in enumerate(columns["row"]):
                ours[number] = {name: values[row] for name, values in columns.items()}
        assert ours.keys() == theirs.keys()
        for number, row in theirs.items():
            for name, leaf in source.leaves.items():
                want, got = leaf_value(row, name.split(".")), ours[number][name]
                if leaf.shape is Shape.LIST:  # pyiceberg 0.12 reads a null list of structs as an empty one
                    want, got = want or [], got or []
                assert got == want, (number, name)


def check_evolution(tmp_path_factory, seed: int) -> None:
    check(evolved_table(tmp_path_factory.mktemp("t"), seed, without_ids=seed % 2 == 1))


@pytest.mark.slow
@given(seed=st.integers(0, 2**32))
@settings(max_examples=3, deadline=None)
def test_any_history_of_a_schema_reads_as_pyiceberg_reads_it(tmp_path_factory, seed):
    check_evolution(tmp_path_factory, seed)


@pytest.mark.soak
@given(seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_any_history_of_a_schema_reads_as_pyiceberg_reads_it_at_length(tmp_path_factory, seed):
    check_evolution(tmp_path_factory, seed)


ROWS = pa.table({"u": [1, 1, 2], "r": [1, 1, 2], "i": [1, 2, 3], "t": pa.array([0, 0, 9], pa.timestamp("us"))})
MAPPING = ColumnMapping(user="u", request="r", item="i", time="t")


def with_struct(**fields: int) -> pa.Table:
    return ROWS.append_column("s", pa.array([fields] * 3))


@pytest.mark.slow
def test_a_reading_by_name_is_found_by_the_check(tmp_path):
    """What the check is for: with the ids of the file forgotten, old values come back, and pyiceberg's scan says so."""
    catalog = memory_catalog(tmp_path)
    table = catalog.create_table("a.theirs", with_struct(a=7, b=1).schema)
    table.append(with_struct(a=7, b=1))
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        with table.update_schema() as update:
            update.rename_column(("s", old), new)
    report = convert_table(table, catalog, "a.ours", MAPPING)
    assert report.compared_with == "pyiceberg's own scan"
    row = catalog.load_table("a.ours").scan().to_arrow().to_pylist()[0]
    assert (row["s_a"], row["s_b"]) == (1, 7)

    by_name = RowSource(table)
    for file in by_name.files.files:
        found = file.leaf_in_file
        found["s.a"], found["s.b"] = found["s.b"], found["s.a"]
    with pytest.raises(RuntimeError, match=r"pyiceberg's own scan.*nothing was committed"):
        convert_table(by_name, catalog, "a.wrong", MAPPING)
    assert not catalog.table_exists("a.wrong")


def test_files_of_a_folder_say_that_there_was_no_second_reader(tmp_path):
    pq.write_table(ROWS, tmp_path / "f.parquet")
    report = convert_table(str(tmp_path / "f.parquet"), memory_catalog(tmp_path), "a.ours", MAPPING)
    assert report.compared_with == "the values as they were read from the files"


def test_a_file_without_ids_and_a_table_without_a_mapping_are_refused(tmp_path):
    catalog = memory_catalog(tmp_path)
    table = catalog.create_table("a.theirs", ROWS.schema)
    pq.write_table(ROWS, tmp_path / "f.parquet")
    table.add_files([str(tmp_path / "f.parquet")])
    with table.transaction() as change:
        change.remove_properties("schema.name-mapping.default")
    with pytest.raises(ValueError, match=r"f.parquet: field ids in the file, or a name mapping of .*found neither"):
        RowSource(table)


@pytest.mark.parametrize("value", ["a/b", "c:d e", "%2F", "100%", "ä&=+", "#?"])
def test_partition_folders_are_opened_as_the_manifest_spells_them(tmp_path, value):
    catalog = memory_catalog(tmp_path)
    rows = ROWS.append_column("p", pa.array([value, "x", value]))
    table = catalog.create_table("a.theirs", rows.schema)
    with table.update_spec() as update:
        update.add_field("p", IdentityTransform())
    table.append(rows)
    found = [value for piece in RowSource(table).pieces(["p", "u"]) for value in piece.arrays["p"].to_pylist()]
    assert sorted(found) == sorted(rows["p"].to_pylist())


def test_a_column_that_no_file_has_is_null(tmp_path):
    table = memory_catalog(tmp_path).create_table("a.theirs", ROWS.schema)
    table.append(ROWS)
    with table.update_schema() as update:
        update.add_column("later", LongType())
    (piece,) = RowSource(table).pieces(["u", "later"])
    assert piece.arrays["later"].to_pylist() == [None] * 3
