"""What a table and its files say about themselves, to the letter; older ones are read, newer ones refused by name."""

from __future__ import annotations

import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    table_schema,
    write,
)
from reqdedup.storage.read.feature_positions import FOOTER_KEY, Positions
from reqdedup.storage.read.feature_table import FEATURES_PROPERTY, feature_schema
from tests.storage.small_log import log_schema, make_log, to_batches

SMALL = EngagementSchema(
    (
        Column(name="user_id", dtype="int64", level=Level.KEY, doc="who"),
        Column(name="request_id", dtype="int64", level=Level.KEY),
        Column(name="item_id", dtype="int64", level=Level.KEY),
        Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
        Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="click", dtype="int32", level=Level.LABEL, nullable=True),
    )
)
GOLDEN = {
    "reqdedup.format": "1",
    "reqdedup.layout": "by_request",
    "reqdedup.schema": (
        '[{"name":"user_id","dtype":"int64","level":"key","doc":"who","kind":"scalar","width":0,"nullable":false},'
        '{"name":"request_id","dtype":"int64","level":"key","doc":"","kind":"scalar","width":0,"nullable":false},'
        '{"name":"item_id","dtype":"int64","level":"key","doc":"","kind":"scalar","width":0,"nullable":false},'
        '{"name":"request_ts","dtype":"timestamp","level":"request","doc":"","kind":"scalar","width":0,"nullable":false},'
        '{"name":"history_item_id","dtype":"int64","level":"request","doc":"","kind":"sequence","width":0,"nullable":false},'
        '{"name":"click","dtype":"int32","level":"label","doc":"","kind":"scalar","width":0,"nullable":true}]'
    ),
}
COUNT = Column(name="visits", dtype="int32", level=Level.REQUEST, nullable=True)


def ours(table: Table) -> dict[str, str]:
    return {name: text for name, text in table.properties.items() if name.startswith("reqdedup.")}


@pytest.fixture
def table(catalog: Catalog) -> Table:
    catalog.create_namespace("n")
    made = create_table(catalog, "n.t", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    write(made, to_batches(make_log(num_users=4, seed=1)))
    return made


def set_property(table: Table, name: str, text: str | None) -> None:
    with table.transaction() as transaction:
        if text is None:
            transaction.remove_properties(name)
        else:
            transaction.set_properties({name: text})


def test_a_new_table_says_this(catalog: Catalog) -> None:
    catalog.create_namespace("n")
    said = ours(create_table(catalog, "n.small", SMALL, Layout.BY_REQUEST))
    assert {name: said[name] for name in GOLDEN} == GOLDEN


def test_a_table_of_version_0_1_is_read_and_a_newer_one_refused_by_name(table: Table) -> None:
    rows = TableSource(table).to_arrow()
    set_property(table, "reqdedup.format", None)
    assert TableSource(table).to_arrow().equals(rows)
    set_property(table, "reqdedup.format", "2")
    with pytest.raises(
        ValueError, match=r"n\.t: table property reqdedup\.format = 1 required, found 2; a newer reqdedup"
    ):
        table_schema(table)


@pytest.mark.parametrize(
    "text", ["{bad", "{}x", "[1]", '[{"name": "a"}]', '[{"name": "a", "level": "x", "kind": "y"}]']
)
def test_a_property_that_is_damaged_is_named_with_its_table(catalog: Catalog, table: Table, text: str) -> None:
    age = Column(name="age", dtype="int32", level=Level.REQUEST, doc="age")
    features = create_feature_table(catalog, "n.f", table, [age])
    for damaged, name, read in (
        (table, "reqdedup.schema", table_schema),
        (features, FEATURES_PROPERTY, feature_schema),
    ):
        with damaged.transaction() as transaction:
            transaction.set_properties({name: text})
        with pytest.raises(ValueError, match=rf"n\.\w: table property {name}: a JSON list of columns required"):
            read(damaged)


def test_a_feature_table_of_a_newer_version_is_refused_by_name(catalog: Catalog, table: Table) -> None:
    side = create_feature_table(catalog, "n.f", table, [COUNT])
    assert ours(side)["reqdedup.format"] == "1"
    assert ours(side)[FEATURES_PROPERTY] == (
        '[{"name":"visits","dtype":"int32","level":"request","doc":"","kind":"scalar","width":0,"nullable":true}]'
    )
    set_property(side, "reqdedup.format", "2")
    with pytest.raises(ValueError, match=r"n\.f: table property reqdedup\.format = 1 required, found 2"):
        bucket_join(table, side)


def test_positions_carry_a_format(catalog: Catalog, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Positions(7, ("ab", "cd")).to_footer() == {
        "reqdedup.positions": '{"format": 1, "main_snapshot": 7, "key_hashes": ["ab", "cd"]}'
    }
    side = create_feature_table(catalog, "n.p", table, [COUNT], by_position=True)
    older = Positions.to_footer
    monkeypatch.setattr(
        Positions, "to_footer", lambda self: {FOOTER_KEY: older(self)[FOOTER_KEY].replace('"format": 1, ', "")}
    )
    add_request_feature(table, side, lambda requests: [1] * requests.num_rows)
    values = [value for batch in bucket_join(table, side).batches(["visits"]) for value in batch["visits"].to_pylist()]
    assert set(values) == {1}
    monkeypatch.setattr(
        Positions, "to_footer", lambda self: {FOOTER_KEY: older(self)[FOOTER_KEY].replace('"format": 1', '"format": 2')}
    )
    add_request_feature(table, side, lambda requests: [2] * requests.num_rows)
    with pytest.raises(ValueError, match=r"format 1 of footer entry reqdedup\.positions required, found 2"):
        list(bucket_join(table, side).batches(["visits"]))
