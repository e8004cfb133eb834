"""A folder of a table format is no folder of Parquet files: `convert` refuses it, `audit` says so before all else."""

from __future__ import annotations

import gzip

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.audit import audit_table, render
from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.storage.foreign.table import open_table
from tests.storage.foreign.evolution import memory_catalog
from tests.storage.foreign.folders import MARKERS, ROWS, table_folder

MAPPING = ColumnMapping(user="u", request="r", item="i", time="t")


@pytest.mark.slow
@pytest.mark.parametrize("kind", MARKERS)
@pytest.mark.parametrize("inside", [".", "data", "data/day=1", "data/day=1/f.parquet", ".."])
def test_a_folder_of_another_format_is_refused_by_name_from_all_around(tmp_path, kind, inside):
    folder = table_folder(tmp_path, MARKERS[kind])
    source = (folder / inside).resolve()
    for path in (str(source), [str(source)]):
        with pytest.raises(ValueError, match=rf"found those of the {kind} table {folder}, among them") as error:
            convert_table(path, memory_catalog(tmp_path / "ours"), "a.ours", MAPPING)
        assert "catalog" in str(error.value)
    if inside in (".", "data/day=1"):
        report = audit_table(str(source), request_key="r", user_key="u")
        assert f"those of the {kind} table {folder}" in report.verdict[0]
        assert render(report).startswith("These files are those of the")


def test_a_symbolic_link_into_a_table_is_followed(tmp_path):
    folder = table_folder(tmp_path, MARKERS["Delta"])
    (tmp_path / "link").symlink_to(folder / "data")
    assert open_table(tmp_path / "link").table_format == f"Delta table {folder}"


def test_the_folder_of_a_live_table_would_revive_deleted_rows(tmp_path):
    catalog = memory_catalog(tmp_path)
    table = catalog.create_table("a.theirs", ROWS.schema)
    table.append(ROWS)
    table.delete("u = 1")
    with pytest.raises(ValueError, match=f"Iceberg table {tmp_path}"):
        convert_table(table.location().removeprefix("file://") + "/data", catalog, "a.ours", MAPPING)
    assert convert_table(table, catalog, "a.ours", MAPPING).rows == 1


@pytest.mark.parametrize("beside", ["metadata/notes.json", "delta_log/x.json", "hoodie/x"])
def test_folders_of_other_names_are_no_table(tmp_path, beside):
    folder = table_folder(tmp_path, beside)
    assert open_table(folder).table_format is None


def test_percent_signs_in_a_uri_are_those_of_the_folder(tmp_path):
    folder = tmp_path / "p=a%2Fb"
    folder.mkdir()
    pq.write_table(ROWS, folder / "f.parquet")
    assert len(open_table(f"file://{folder}").files) == 1
    (tmp_path / "with space").mkdir()
    pq.write_table(ROWS, tmp_path / "with space" / "f.parquet")
    assert len(open_table(f"file://{tmp_path}/with%20space").files) == 1


@pytest.mark.parametrize("rows", [ROWS, ROWS.to_batches(), pl.from_arrow(ROWS), {"s": [1]}, 7])
def test_rows_in_memory_are_named_for_what_they_are(rows):
    with pytest.raises(
        ValueError, match=f"Parquet files or an Iceberg table required, found a .*{type(rows).__name__}"
    ):
        open_table(rows)


def test_two_columns_of_one_name_are_refused(tmp_path):
    rows = ROWS.append_column("s.a", pa.array([1, 2, 3])).append_column("s", pa.array([{"a": 4}] * 3))
    pq.write_table(rows, tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"one column per name required, found s\.a more than once"):
        open_table(tmp_path)


def test_files_beside_a_log_are_named_and_a_packed_one_alone_writes_nothing(tmp_path):
    catalog, folder = memory_catalog(tmp_path), tmp_path / "theirs"
    folder.mkdir()
    pq.write_table(ROWS, folder / "a.parquet")
    packed = gzip.compress((folder / "a.parquet").read_bytes())
    for name in ("b.parquet.gz", "c.csv", "_SUCCESS", ".d.csv", "readme.md"):
        (folder / name).write_bytes(packed)
    report = convert_table(folder, catalog, "a.ours", MAPPING)
    assert report.rows == len(ROWS)
    assert "left out of the folder, as no Parquet: 2 files, b.parquet.gz, c.csv" in report.notes
    (folder / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"found 5 other entries \(b.parquet.gz, c.csv\).*must be unpacked"):
        convert_table(folder, catalog, "a.other", MAPPING)
    for content in (packed, packed[: len(packed) // 2]):
        (folder / "b.parquet.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"b.parquet.gz: a readable Parquet file required.*unpack it"):
            convert_table(folder / "b.parquet.gz", catalog, "a.other", MAPPING)
    assert [name for _, name in catalog.list_tables("a")] == ["ours"]
