"""The table of rejected rows: replaced by every ingest, readable by any Iceberg reader."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField, StringType

from reqdedup.logs import SyntheticLogConfig, synthetic_schema
from reqdedup.schema import Column, Level
from reqdedup.storage import Layout, create_feature_table, create_table
from reqdedup.storage.write.rejects import check_rejects_table, rejects_identifier, write_rejects


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
    assert table.scan().to_arrow().drop(["user_id", "table_name"]).to_pylist() == rows.to_pylist()
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


@pytest.mark.slow
def test_an_ingest_replaces_the_rows_of_its_own_table_alone(catalog):
    for name in ("a", "b", "gone"):
        create_table(catalog, f"shop.{name}", synthetic_schema(SyntheticLogConfig()), Layout.BY_REQUEST)
    place = "shop.rejected_engagements"

    def lines() -> list[tuple]:
        rows = catalog.load_table(place).scan().to_arrow().to_pylist()
        return sorted((row["table_name"] or "", row["line"]) for row in rows)

    write_rejects(catalog, place, rejects(("time", "of_before.csv", 1, "x")))
    write_rejects(catalog, place, rejects(("time", "a.csv", 3, "x"), ("time", "a.csv", 4, "y")), of="shop.a")
    assert lines() == [("shop.a", 3), ("shop.a", 4)]
    with catalog.load_table(place).update_schema() as update:
        update.add_column("seen_by", StringType())
    write_rejects(catalog, place, rejects(("time", "c.csv", 9, "y")), of="shop.gone")
    before = catalog.load_table(place).metadata_location
    table = write_rejects(catalog, place, rejects(("time", "b.csv", 5, "y")), of="shop.b")
    assert lines() == [("shop.a", 3), ("shop.a", 4), ("shop.b", 5), ("shop.gone", 9)]
    assert table.metadata.metadata_log[-1].metadata_file == before, "more than one commit lies between"
    catalog.drop_table("shop.gone")
    write_rejects(catalog, place, [], of="shop.a")
    assert lines() == [("shop.b", 5)]


def test_batches_and_narrower_types_are_taken(catalog):
    constant = {name: [name] for name in ("reason", "detail", "file")}
    batch = pa.record_batch(constant | {"line": pa.array([1], pa.int32()), "raw": ["é"], "x": [0]})
    table = write_rejects(catalog, "shop.rejected_engagements", [batch, batch])
    assert table.scan().to_arrow().num_rows == 2


def test_a_table_of_an_earlier_version_gets_its_new_columns_in_the_same_commit(catalog):
    write_rejects(catalog, "shop.rejected_engagements", rejects(("null user id", "a.csv", 3, "x")))
    with catalog.load_table("shop.rejected_engagements").update_schema() as update:
        update.delete_column("user_id")
        update.delete_column("table_name")
        update.add_column("seen_by", StringType())
    before = catalog.load_table("shop.rejected_engagements")
    rows = rejects(("time", "a.csv", 4, "y")).append_column("user_id", pa.array([7], pa.int64()))
    table = write_rejects(catalog, "shop.rejected_engagements", rows)
    assert table.metadata.table_uuid == before.metadata.table_uuid
    assert table.metadata.metadata_log[-1].metadata_file == before.metadata_location, "more than one commit"
    assert table.scan().to_arrow().select(["line", "user_id", "seen_by"]).to_pylist() == [
        {"line": 4, "user_id": 7, "seen_by": None}
    ]


def test_a_table_of_other_rows_is_left_alone(catalog):
    catalog.create_table("shop.rejected_engagements", Schema(NestedField(1, "n", LongType(), required=False)))
    with pytest.raises(ValueError, match="a table of rejected rows required, found one with columns n"):
        check_rejects_table(catalog, "shop.rejected_engagements")
    with pytest.raises(ValueError, match="a table of rejected rows required, found one with columns n"):
        write_rejects(catalog, "shop.rejected_engagements", rejects(("null user id", "a.csv", 3, "x")))
    assert catalog.load_table("shop.rejected_engagements").schema().column_names == ["n"]
    check_rejects_table(catalog, "shop.not_there")


@pytest.mark.parametrize("kept", ["rejected_engagements", "Rejected_Engagements", "graph_run"])
def test_no_table_of_engagements_or_features_takes_a_name_that_is_kept(catalog, kept):
    schema = synthetic_schema(SyntheticLogConfig())
    name = f"shop.{kept}"
    message = f"a name other than {kept.lower()} required"
    with pytest.raises(ValueError, match=message):
        rejects_identifier(name)
    with pytest.raises(ValueError, match=message):
        create_table(catalog, name, schema, Layout.BY_REQUEST)
    main = create_table(catalog, "shop.engagements", schema, Layout.BY_REQUEST)
    with pytest.raises(ValueError, match=message):
        create_feature_table(catalog, name, main, [Column(name="age", dtype="int32", level=Level.REQUEST)])
    assert [".".join(table) for table in catalog.list_tables("shop")] == ["shop.engagements"]


def test_rows_without_a_reason_are_refused(catalog):
    with pytest.raises(ValueError, match="every row needs a reason, found 1"):
        write_rejects(catalog, "shop.t", rejects((None, "a.csv", 1, "x")))
    with pytest.raises(ValueError, match=r"columns .* required"):
        write_rejects(catalog, "shop.t", pa.table({"reason": ["r"]}))


def test_rejects_lie_beside_the_table_they_belong_to():
    assert rejects_identifier("shop.eu.engagements") == "shop.eu.rejected_engagements"
    with pytest.raises(ValueError, match=r"namespace\.name required, found 'engagements'"):
        rejects_identifier("engagements")
