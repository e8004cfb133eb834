"""The table of rejected rows: replaced as a whole, readable by any Iceberg reader."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField

from reqdedup.storage.write.rejects import rejects_identifier, write_rejects


@pytest.fixture
def catalog(tmp_path):
    catalog = SqlCatalog("test", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/tables")
    catalog.create_namespace("shop")
    return catalog


def rejects(*rows: tuple[str, str, int | None, str | None]) -> pa.Table:
    reason, file, line, raw = zip(*rows) if rows else ((), (), (), ())
    return pa.table(
        {
            "reason": pa.array(reason, pa.string()),
            "detail": pa.array(["found something else"] * len(reason), pa.string()),
            "file": pa.array(file, pa.string()),
            "line": pa.array(line, pa.int64()),
            "raw": pa.array(raw, pa.string()),
        }
    )


def test_the_rows_come_back_with_reason_file_and_line(catalog):
    rows = rejects(("null user id", "a.csv", 3, ",7,1"), ("unparsable time", "b.csv", None, None))
    table = write_rejects(catalog, "shop.rejected_engagements", rows)
    assert table.scan().to_arrow().drop("user_id").to_pylist() == rows.to_pylist()
    assert all(field.doc for field in table.schema().fields)


def test_a_second_ingest_replaces_the_rows_in_one_commit(catalog):
    write_rejects(catalog, "shop.rejected_engagements", rejects(("null user id", "a.csv", 3, "x")))
    before = catalog.load_table("shop.rejected_engagements").metadata_location
    table = write_rejects(catalog, "shop.rejected_engagements", rejects(("label out of range", "a.csv", 9, "y")))
    assert table.scan().to_arrow().column("line").to_pylist() == [9]
    assert table.metadata.metadata_log[-1].metadata_file == before, "more than one commit lies between"


def test_a_clean_ingest_leaves_an_empty_table(catalog):
    write_rejects(catalog, "shop.rejected_engagements", rejects(("null user id", "a.csv", 3, "x")))
    assert write_rejects(catalog, "shop.rejected_engagements", []).scan().to_arrow().num_rows == 0
    assert write_rejects(catalog, "shop.other", rejects()).scan().to_arrow().num_rows == 0


def test_batches_and_narrower_types_are_taken(catalog):
    constant = {name: [name] for name in ("reason", "detail", "file")}
    batch = pa.record_batch(constant | {"line": pa.array([1], pa.int32()), "raw": ["é"], "x": [0]})
    table = write_rejects(catalog, "shop.rejected_engagements", [batch, batch])
    assert table.scan().to_arrow().num_rows == 2


def test_a_table_of_another_schema_is_made_anew(catalog):
    catalog.create_table("shop.rejected_engagements", Schema(NestedField(1, "n", LongType(), required=False)))
    table = write_rejects(catalog, "shop.rejected_engagements", rejects(("null user id", "a.csv", 3, "x")))
    assert table.scan().to_arrow().num_rows == 1


def test_rows_without_a_reason_are_refused(catalog):
    with pytest.raises(ValueError, match="every row needs a reason, found 1"):
        write_rejects(catalog, "shop.t", rejects((None, "a.csv", 1, "x")))
    with pytest.raises(ValueError, match=r"columns .* required"):
        write_rejects(catalog, "shop.t", pa.table({"reason": ["r"]}))


def test_rejects_lie_beside_the_table_they_belong_to():
    assert rejects_identifier("shop.eu.engagements") == "shop.eu.rejected_engagements"
    with pytest.raises(ValueError, match=r"namespace\.table, found 'engagements'"):
        rejects_identifier("engagements")
