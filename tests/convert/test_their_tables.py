"""What people have, whoever wrote it: audited, converted, and read back by DuckDB as the same rows."""

from __future__ import annotations

import json

import duckdb
import pytest

from reqdedup.audit import audit_table
from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.storage import Layout
from tests.convert.their_tables import TABLES
from tests.storage.tables import files_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, Layout.BY_REQUEST) for name in TABLES),
        *(  # who wrote the table does not reach the layout
            pytest.param(name, Layout.SORTED_LARGE_PAGES, marks=[pytest.mark.soak] if number else [])
            for number, name in enumerate(TABLES)
        ),
    ],
)
def test_a_table_is_audited_converted_and_read_back_as_it_was(catalog, tmp_path, name, layout):
    theirs, folder = TABLES[name], tmp_path / "theirs"
    folder.mkdir()
    theirs.write(folder)
    mapping = ColumnMapping(**theirs.mapping)
    if layout is Layout.BY_REQUEST:
        keys = mapping.request_names or (mapping.user, mapping.time)
        assert audit_table(str(folder), request_key=keys, user_key=mapping.user).layouts
    report = convert_table(str(folder), catalog, "lake.ours", mapping, layout=layout, num_buckets=2)
    table = catalog.load_table("lake.ours")
    source = theirs.rows.format(files=sorted(map(str, folder.rglob("*.parquet"))))
    decode = {
        column: lines["duckdb"] for column, lines in json.loads(table.properties.get("reqdedup.decode", "{}")).items()
    }
    ours = ", ".join(decode.get(column, column) for column in theirs.ours.split(", "))
    found, wanted = (
        sorted(duckdb.sql(f"select {columns} from {rows}").fetchall(), key=repr)
        for columns, rows in ((ours, f"read_parquet({files_of(table)})"), (theirs.theirs, source))
    )
    assert found == wanted
    assert report.rows == len(wanted)
    assert report.requests == duckdb.sql(f"select {theirs.requests} from {source}").fetchall()[0][0]
    assert set(theirs.changes) <= set(report.changes)
    named = {one.split("(")[-1].split(")")[0].strip('"').removesuffix("::varchar") for one in theirs.ours.split(", ")}
    unseen = {column for column in report.columns if column not in named} - {"user_id", "request_id", "item_id"}
    assert not unseen - {"user_key", "request_ts"}, "a column that was not compared"
