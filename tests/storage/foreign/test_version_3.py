"""Iceberg tables of format version 3: defaults are read as pyiceberg reads them, and nothing is written by halves."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import load_catalog

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.storage import Layout, TableSource, compact, create_table, delete_user, table_health, write
from reqdedup.storage.foreign.source import RowSource
from reqdedup.storage.maintenance.namespace import list_tables, load_listed
from tests.storage.foreign.delete_files import delete_by_vectors, delete_positions
from tests.storage.foreign.evolution import memory_catalog
from tests.storage.foreign.folders import ROWS
from tests.storage.small_log import log_schema, make_log, to_batches
from tests.storage.tables import rows_of

MAPPING = ColumnMapping(user="u", request="r", item="i", time="t")
DEFAULTS = {
    "int": 7,
    "long": 2**40,
    "float": 0.5,
    "boolean": True,
    "string": "x",
    "date": "2024-01-02",
    "timestamptz": "2024-01-02T03:04:05+00:00",
    "decimal(9,2)": "1.25",
    "uuid": "f79c3e09-677c-4bbd-a479-3f349cb785e7",
    "binary": "000102ff",
}
IN_OUR_TABLES = ("int", "long", "float", "boolean", "string", "timestamptz")


def upgraded(catalog, table, name, *, added=()):
    """The table as another engine makes it: of version 3, with these fields added after its last write."""
    return registered(catalog, table, name, lambda metadata: of_version_3(metadata, added))


def of_version_3(metadata, added):
    last, now = metadata["last-column-id"], metadata["schemas"][-1]
    fields = [{"id": last + 1 + number, "required": False, **field} for number, field in enumerate(added)]
    schema = {**now, "schema-id": now["schema-id"] + 1, "fields": [*now["fields"], *fields]}
    metadata |= {"format-version": 3, "next-row-id": 0, "last-column-id": last + len(fields)}
    return metadata | {"schemas": [*metadata["schemas"], schema], "current-schema-id": schema["schema-id"]}


def retyped(catalog, table, name, column, kind):
    """The table in version 3, with another type of a column."""

    def change(metadata):
        for schema in metadata["schemas"]:
            next(field for field in schema["fields"] if field["name"] == column)["type"] = kind
        return metadata | {"format-version": 3, "next-row-id": 0}

    return registered(catalog, table, name, change)


def registered(catalog, table, name, change):
    path = Path(table.metadata_location.removeprefix("file://"))
    new = path.with_name(f"00099-{name}.metadata.json")
    new.write_text(json.dumps(change(json.loads(path.read_text()))))
    return catalog.register_table(f"a.{name}", str(new))


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_column_that_was_added_with_a_default_has_it_in_older_files(tmp_path, kind):
    catalog = memory_catalog(tmp_path)
    table = catalog.create_table("a.t", ROWS.schema)
    table.append(ROWS)
    later = {"name": "later", "type": "long", "write-default": 5}  # of rows written since: there are none
    first = {"name": "first", "type": kind, "initial-default": DEFAULTS[kind], "write-default": DEFAULTS[kind]}
    table = upgraded(catalog, table, "v3", added=(first, later))
    scanned = table.scan().to_arrow()
    pieces = list(RowSource(table).pieces(["first", "later"]))
    for name in ("first", "later"):
        found = [value for piece in pieces for value in piece.arrays[name].to_pylist()]
        wanted = scanned[name].to_pylist()
        assert found == ([str(value) for value in wanted] if kind == "uuid" and name == "first" else wanted)
    if kind in IN_OUR_TABLES:
        convert_table(table, catalog, "a.ours", MAPPING, num_buckets=1)
        assert catalog.load_table("a.ours").scan().to_arrow()["first"].to_pylist() == scanned["first"].to_pylist()


def test_our_table_in_version_3_is_read_and_refused_by_name_before_anything_is_written(tmp_path):
    catalog = memory_catalog(tmp_path)
    table = create_table(catalog, "a.t", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    batches = to_batches(make_log(num_users=5))
    write(table, batches)
    table = upgraded(catalog, table, "v3", added=({"name": "theirs", "type": "int", "initial-default": 7},))
    assert rows_of(TableSource(table).batches()) == rows_of(batches)
    health = table_health(table)
    assert health.rows == sum(batch.num_rows for batch in batches)
    assert "columns: a.v3: columns that a rewrite can keep required" in health.advice[-1]
    files, user = sorted(tmp_path.rglob("*")), batches[0]["user_id"][0].as_py()
    for call in (
        lambda: write(table, batches, mode="append"),
        lambda: compact(table, force=True),
        lambda: delete_user(table, user),
    ):
        with pytest.raises(ValueError, match=r"a\.v3: .*(version 1 or 2 required to write, found 3|without a default)"):
            call()
    assert sorted(tmp_path.rglob("*")) == files
    assert rows_of(TableSource(table.refresh()).batches()) == rows_of(batches)


@pytest.mark.slow
def test_deletion_vectors_are_applied_also_beside_position_deletes_of_before_the_upgrade(tmp_path):
    catalog = memory_catalog(tmp_path)
    table = catalog.create_table("a.t", ROWS.schema)
    for _ in range(3):
        table.append(ROWS)
    first, second, _ = (task.file.file_path for task in table.scan().plan_files())
    delete_positions(table, {first: [0]})
    delete_by_vectors(table, {first: [0, 2], second: [len(ROWS) - 1]})
    table = upgraded(catalog, table, "v3")
    source = RowSource(table)
    kept = {piece.path: piece.rows.tolist() for piece in source.pieces(["r"])}
    every = list(range(len(ROWS)))
    assert kept.pop(first) == [row for row in every if row not in (0, 2)]
    assert kept.pop(second) == every[:-1]
    assert list(kept.values()) == [every]
    assert source.num_rows == len(table.scan().to_arrow()) == 3 * len(ROWS) - 3
    report = convert_table(table, catalog, "a.ours", MAPPING, num_buckets=1)
    assert (report.rows, report.notes[0]) == (source.num_rows, "left out, as delete files name them: 3 rows")


@pytest.mark.parametrize("finer", [0, 1])
def test_times_of_nanoseconds_are_taken_if_they_are_whole_microseconds(tmp_path, finer):
    catalog = memory_catalog(tmp_path)
    table = catalog.create_table("a.t", ROWS.schema)
    table.append(ROWS)
    (file,) = (task.file.file_path.removeprefix("file://") for task in table.scan().plan_files())
    rows = pq.read_table(file)
    at = rows.schema.get_field_index("t")
    field = rows.schema.field(at)
    kind = pa.timestamp("ns", field.type.tz)
    values = pc.add(rows["t"].cast(kind).cast(pa.int64()), finer).cast(kind)
    pq.write_table(rows.set_column(at, field.with_type(kind), values), file)
    table = retyped(catalog, table, "v3", "t", "timestamp_ns" if field.type.tz is None else "timestamptz_ns")
    if finer:
        with pytest.raises(ValueError, match=r"column t as timestamp .* would lose data: .* CAST"):
            convert_table(table, catalog, "a.ours", MAPPING, num_buckets=1)
        return
    convert_table(table, catalog, "a.ours", MAPPING, num_buckets=1)
    found = catalog.load_table("a.ours").scan().to_arrow()["request_ts"].to_pylist()
    assert sorted(one.replace(tzinfo=None) for one in found) == sorted(
        one.replace(tzinfo=None) for one in ROWS["t"].to_pylist()
    )


@pytest.mark.parametrize("kind", ["variant", "geometry(srid:3857)", "some_type_of_tomorrow"])
def test_a_table_of_types_that_pyiceberg_does_not_know_is_named_and_hides_no_other(tmp_path, kind):
    catalog = load_catalog("sql", type="sql", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("a")
    table = catalog.create_table("a.t", ROWS.schema)
    path = Path(table.metadata_location.removeprefix("file://"))
    catalog.create_table("a.good", ROWS.schema)
    path.write_text(json.dumps(of_version_3(json.loads(path.read_text()), [{"name": "x", "type": kind}])))
    with pytest.raises(ValueError, match=r"table a\.t: column types that pyiceberg .*(type|Type).*CREATE TABLE"):
        load_listed(catalog, "a.t")
    listed = {row["table"]: row for row in list_tables(catalog).to_pylist()}
    assert {name: row["kind"] for name, row in listed.items()} == {"a.good": "other", "a.t": "unreadable"}
    assert listed["a.t"]["rows"] is None
