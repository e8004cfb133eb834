"""Items that are texts, in a conversion and its appends: one id a key, wherever it stands, and never two kinds mixed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.storage import Layout, TableSource
from reqdedup.storage.iceberg.vocabulary import Vocabulary

KEYS = ["7", "07", "N 1", "é", "e\u0301", "日本", "", "x" * 3_000]
MAPPING = ColumnMapping(user="u", request="r", item="i", time="t", ids=["seen"], rename={"seen": "history_item_id"})
HASHED = ColumnMapping(**{**vars(MAPPING), "hash_items": True})


def rows_of(day, keys=KEYS, kind=None):
    rng = np.random.default_rng(day)
    rows = [
        {"u": user, "r": 10 * day + user, "i": keys[item], "t": 1_700_000_000 + 86_400 * day, "seen": seen}
        for user in range(5)
        for seen in [[keys[one] for one in rng.integers(0, len(keys), user)]]
        for item in rng.choice(len(keys), 3, replace=False)
    ]
    table = pa.Table.from_pylist(rows)
    if kind is not None:
        table = table.set_column(2, "i", table["i"].cast(kind))
    return table.set_column(3, "t", table["t"].cast(pa.timestamp("s")))


def keyed(catalog, name):
    source = TableSource(catalog.load_table(name))
    rows = source.to_arrow().to_pylist()
    words = source.vocabulary
    assert words is not None
    return sorted(
        (row["user_id"], row["request_id"], *words.keys(np.array([row["item_id"], *row["history_item_id"]])))
        for row in rows
    )


def plain(*tables):
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted((row["u"], row["r"], row["i"], *row["seen"]) for row in rows)


@pytest.mark.parametrize("kind", [None, pa.dictionary(pa.int32(), pa.string()), pa.large_string()])
def test_a_conversion_and_an_append_keep_every_key(catalog, tmp_path, kind):
    days = [rows_of(1, kind=kind), rows_of(2, [*KEYS, "new"], kind=kind)]
    for day, table in enumerate(days):
        pq.write_table(table, tmp_path / f"{day}.parquet")
        report = convert_table(tmp_path / f"{day}.parquet", catalog, "test.ours", MAPPING, append=day > 0)
        assert "item_key" not in report.columns
    assert keyed(catalog, "test.ours") == plain(*days)
    assert len(np.unique(Vocabulary(catalog, "test.items").table().scan().to_arrow()["item_id"])) == len(KEYS) + 1


def test_a_table_of_hashes_gets_hashes_and_one_of_ids_no_numbers(catalog, tmp_path):
    paths = [tmp_path / f"{name}.parquet" for name in ("one", "two", "numbers")]
    for path, table in zip(paths, (rows_of(1), rows_of(2), rows_of(3, list(range(8)))), strict=True):
        pq.write_table(table, path)
    convert_table(paths[0], catalog, "test.hashed", HASHED)
    convert_table(paths[1], catalog, "test.hashed", MAPPING, append=True)
    assert "item_key" in TableSource(catalog.load_table("test.hashed")).schema
    assert not catalog.table_exists("test.items")
    convert_table(paths[0], catalog, "test.ours", MAPPING)
    with pytest.raises(ValueError, match=r"item_id is of numbers, there of keys of test\.items"):
        convert_table(paths[2], catalog, "test.ours", MAPPING, append=True)
    convert_table(paths[1], catalog, "test.ours", HASHED, append=True)  # which the table is not
    assert keyed(catalog, "test.ours") == plain(rows_of(1), rows_of(2))


def test_a_table_of_ours_that_is_converted_again_keeps_the_name_of_its_vocabulary(catalog, tmp_path):
    pq.write_table(rows_of(1), tmp_path / "1.parquet")
    convert_table(tmp_path / "1.parquet", catalog, "test.ours", MAPPING)
    again = ColumnMapping(user="user_id", request="request_id", item="item_id", time="request_ts")
    ours = catalog.load_table("test.ours")
    convert_table(ours, catalog, "other.again", again, layout=Layout.SORTED_LARGE_PAGES)
    assert keyed(catalog, "other.again") == keyed(catalog, "test.ours") == plain(rows_of(1))
    assert not catalog.table_exists("other.items")
    convert_table(ours, catalog, "other.again", again, append=True)
    assert keyed(catalog, "other.again") == sorted(2 * plain(rows_of(1)))

    elsewhere = SqlCatalog("elsewhere", uri=f"sqlite:///{tmp_path}/e.db", warehouse=f"file://{tmp_path}/e")
    report = convert_table(ours, elsewhere, "test.again", again)
    assert TableSource(elsewhere.load_table("test.again")).vocabulary is None
    assert any("item_id, history_item_id: ids whose keys are in test.items of" in note for note in report.notes)


def test_a_null_item_is_refused_with_its_place(catalog, tmp_path):
    table = rows_of(1)
    items = [None, *table["i"].to_pylist()[1:]]
    for kind in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        path = tmp_path / "t.parquet"
        pq.write_table(table.set_column(2, "i", pa.array(items, pa.string()).cast(kind)), path)
        with pytest.raises(ValueError, match="column i as int64 required at row 1: no nulls allowed, found 1"):
            convert_table(path, catalog, "test.ours", MAPPING)
    assert not catalog.table_exists("test.ours")
