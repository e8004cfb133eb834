"""The table of items: one id a key and one key an id, whoever writes at once."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import CommitStateUnknownException
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import FloatType, LongType, NestedField

from reqdedup.storage.iceberg import vocabulary
from reqdedup.storage.iceberg.vocabulary import NEXT_ID_PROPERTY, Vocabulary, is_vocabulary


@pytest.fixture
def opened(tmp_path):
    """Opens the catalog once more, as another process would."""

    def open_it():
        return load_catalog("test", type="sql", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/lake")

    open_it().create_namespace("lake")
    return open_it


def assigned(words: Vocabulary, keys: list[str]) -> list[int]:
    return words.assign(pa.array(keys, pa.string())).tolist()


def rows(catalog) -> dict[str, int]:
    found = catalog.load_table("lake.items").scan().to_arrow()
    keys, ids = found["item_key"].to_pylist(), found["item_id"].to_pylist()
    assert len(set(keys)) == len(keys) == len(set(ids))
    return dict(zip(keys, ids, strict=True))


def test_keys_get_the_next_ids_in_their_order_and_keep_them(opened):
    words = Vocabulary(opened(), "lake.items")
    odd = ["7", "07", "7.0", "", " ", "\x1f", "NULL", "é", "e\u0301", "日本", "🙂", "x" * 200_000]
    assert assigned(words, odd) == list(range(len(odd)))
    assert assigned(words, ["new", *odd[::-1]]) == [len(odd), *range(len(odd))[::-1]]
    assert assigned(words, []) == []
    assert rows(opened()) == {key: number for number, key in enumerate([*odd, "new"])}
    assert words.keys(np.array([3, 1, 3, 99, -1])).tolist() == ["", "07", "", "", ""]
    assert is_vocabulary(opened().load_table("lake.items"))


def test_ids_whose_rows_were_deleted_are_given_to_nobody_else(opened):
    words = Vocabulary(opened(), "lake.items")
    assigned(words, ["a", "b", "c"])
    opened().load_table("lake.items").delete("item_id >= 1")
    assert assigned(words, ["d", "c"]) == [3, 4]


def test_columns_that_others_add_stay(opened):
    words = Vocabulary(opened(), "lake.items")
    assigned(words, ["a"])
    with opened().load_table("lake.items").update_schema() as update:
        update.add_column("price", FloatType())
    assert assigned(words, ["a", "b"]) == [0, 1]
    assert opened().load_table("lake.items").scan().to_arrow()["price"].to_pylist() == [None, None]


@settings(max_examples=4, deadline=None)
@given(lists=st.lists(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=6), min_size=2, max_size=4))
def test_those_who_ask_at_once_agree_about_every_key(tmp_path_factory, lists):
    folder = tmp_path_factory.mktemp("at_once")

    def opened():
        return load_catalog("test", type="sql", uri=f"sqlite:///{folder}/c.db", warehouse=f"file://{folder}/lake")

    opened().create_namespace("lake")
    start, found = threading.Barrier(len(lists)), [dict[str, int]() for _ in lists]

    def ask(number: int) -> None:
        words = Vocabulary(opened(), "lake.items")
        start.wait()
        found[number] = dict(zip(lists[number], assigned(words, lists[number]), strict=True))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(lists))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = rows(opened())
    assert sorted(wanted) == sorted({key for keys in lists for key in keys})
    assert sorted(wanted.values()) == list(range(len(wanted)))
    assert found == [{key: wanted[key] for key in keys} for keys in lists]


@pytest.mark.parametrize("landed", [True, False])
def test_a_commit_whose_answer_is_lost_is_looked_for(opened, monkeypatch, landed):
    words, commit, lost = Vocabulary(opened(), "lake.items"), Table._do_commit, []
    assigned(words, ["a"])

    def without_answer(table, updates, requirements):
        if lost:
            return commit(table, updates, requirements)
        lost.append(landed)
        if landed:
            commit(table, updates, requirements)
        raise CommitStateUnknownException("no answer")

    monkeypatch.setattr(Table, "_do_commit", without_answer)
    assert assigned(words, ["b", "a"]) == [1, 0]
    assert rows(opened()) == {"a": 0, "b": 1}


def test_ids_of_more_than_31_bits_are_refused(opened):
    words = Vocabulary(opened(), "lake.items")
    assigned(words, ["a"])
    with opened().load_table("lake.items").transaction() as transaction:
        transaction.set_properties({NEXT_ID_PROPERTY: str(2**31 - 2)})
    assert assigned(words, ["b"]) == [2**31 - 2]
    with pytest.raises(ValueError, match="at most 2,147,483,647 keys required"):
        assigned(words, ["c"])
    assert rows(opened()) == {"a": 0, "b": 2**31 - 2}


def test_a_table_of_other_rows_is_refused_and_a_lost_one_named(opened):
    words = Vocabulary(opened(), "lake.items")
    with pytest.raises(ValueError, match=r"lake\.items: the vocabulary of the items' ids required, found none"):
        words.keys(np.array([1]))
    opened().create_table("lake.items", Schema(NestedField(1, "price", LongType())))
    for call in (words.check, lambda: assigned(words, ["a"])):
        with pytest.raises(ValueError, match=r"lake\.items: a table of items .* found one with columns price"):
            call()


def test_others_who_never_stop_end_it(opened, monkeypatch):
    monkeypatch.setattr(vocabulary, "ATTEMPTS", 2)
    monkeypatch.setattr(vocabulary, "_append", lambda *arguments: False)
    with pytest.raises(vocabulary.ConflictError, match="others changed the table 2 times in a row"):
        assigned(Vocabulary(opened(), "lake.items"), ["a"])
