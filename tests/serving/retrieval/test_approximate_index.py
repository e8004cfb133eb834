"""The approximate index finds most of what exact search finds, and nothing that is not allowed."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from reqdedup.serving.requests import ItemFilter
from reqdedup.serving.retrieval.approximate_index import (
    EXACT_UP_TO,
    ApproximateIndex,
    build_index,
    index_kind,
    open_index,
    recall,
)
from reqdedup.serving.retrieval.item_index import ExactIndex, nearest
from reqdedup.serving.retrieval.item_vectors import ItemVectors

NUM, WIDTH = 4000, 16


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, WIDTH)).astype(np.float32)[rng.integers(0, 40, NUM)]
    vectors += 0.6 * rng.standard_normal((NUM, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ItemVectors.of(np.arange(0, 2 * NUM, 2), vectors, {"category": rng.integers(0, 100, NUM)})


@pytest.fixture(scope="module")
def path(items, tmp_path_factory):
    pytest.importorskip("faiss")
    path = tmp_path_factory.mktemp("index") / "items.faiss"
    assert build_index(items.vectors, path, kind="IVF64,SQ8", probed=1 / 32)
    return path


@pytest.fixture
def index(items, path):
    index = open_index(path, items)
    assert index.kind == "ivf64"
    return index


def test_most_of_the_nearest_are_found_with_the_scores_of_exact_search(items, index):
    recalls = []
    for user_D in items.vectors[::400]:
        row, score, kind = nearest(items, index, user_D, 20, ItemFilter())
        exact_row, exact_score, _ = nearest(items, ExactIndex(items), user_D, 20, ItemFilter())
        wanted = dict(zip(exact_row.tolist(), exact_score.tolist()))
        assert kind == "ivf64"
        assert all(wanted.get(r, s) == s for r, s in zip(row.tolist(), score.tolist()))
        assert score.tolist() == sorted(score.tolist(), reverse=True)
        recalls.append(len(wanted.keys() & set(row.tolist())) / 20)
    assert np.mean(recalls) > 0.6  # 2 of 64 lists


def test_filters_are_answered_exactly_and_nothing_forbidden_comes_back(items, index):
    rng, user_D = np.random.default_rng(1), items.vectors[3]
    for filter in (
        ItemFilter(categories={"category": np.array([5])}),
        ItemFilter(allow=rng.choice(items.item_id, 3900, replace=False)),
        ItemFilter(allow=np.array([8, 9, 10]), deny=np.array([10])),
        ItemFilter(allow=np.zeros(0, np.int64)),
    ):
        row, score, kind = nearest(items, index, user_D, 50, filter)
        exact = nearest(items, ExactIndex(items), user_D, 50, filter)
        assert kind == "exact"
        assert np.array_equal(row, exact[0])
        assert np.array_equal(score, exact[1])
    nearest_ids = items.item_id[nearest(items, index, user_D, 10, ItemFilter())[0]]
    row, _, kind = nearest(items, index, user_D, 10, ItemFilter(deny=nearest_ids))
    assert kind == "ivf64"
    assert len(row) == 10
    assert not set(items.item_id[row]) & set(nearest_ids)


def test_more_than_the_lists_hold_is_searched_exactly(items, index):
    row, _, kind = nearest(items, index, items.vectors[0], NUM + 5, ItemFilter())
    assert (len(row), kind) == (NUM, "exact")


@pytest.mark.slow
def test_as_many_lists_are_looked_at_as_recall_asks_for(items, tmp_path, caplog):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(3)
    near = items.vectors[rng.integers(0, 40, NUM)] + 0.1 * rng.standard_normal((NUM, WIDTH)).astype(np.float32)
    near = ItemVectors.of(items.item_id, near / np.linalg.norm(near, axis=1, keepdims=True))
    assert build_index(near.vectors, tmp_path / "index", kind="IVF40,SQ8")
    found = open_index(tmp_path / "index", near)
    assert found.kind == "ivf40"
    assert recall(near, found, near.vectors[100:140]) > 0.95
    noise = rng.standard_normal((2000, WIDTH)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert not build_index(noise, tmp_path / "noise", kind="IVF64,SQ8")
    assert not (tmp_path / "noise").exists()
    assert "exact search over all items" in caplog.text


def test_users_who_are_elsewhere_than_items_get_as_many_lists_as_they_need(items, tmp_path):
    """As trained towers put them: nearest to items of many lists, none of them near."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(4)
    narrow = items.vectors + 3.0 * np.eye(1, WIDTH, dtype=np.float32)  # all items in one cone, no user in it
    narrow = ItemVectors.of(items.item_id, narrow / np.linalg.norm(narrow, axis=1, keepdims=True))
    users = rng.standard_normal((80, WIDTH)).astype(np.float32)
    users[:, 0] = 0
    users /= np.linalg.norm(users, axis=1, keepdims=True)
    found = {}
    for name, seen in (("items", None), ("users", users[:40])):
        if build_index(narrow.vectors, tmp_path / name, kind="IVF64,SQ8", users=seen):
            found[name] = recall(narrow, open_index(tmp_path / name, narrow), users[40:])
    assert found.get("items", 0) < 0.9
    assert found.get("users", 1) > 0.95


def test_few_items_need_no_index_and_many_get_lists_by_their_number(items, tmp_path):
    assert index_kind(EXACT_UP_TO) is None
    assert index_kind(1_000_000) == "IVF4096,SQ8"
    assert index_kind(10_000_000) == "IVF16384,SQ8"
    assert not build_index(items.vectors, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_faiss_search_is_exact_and_says_so(items, path, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_index(path, items), ExactIndex)
        assert not build_index(items.vectors, tmp_path / "none", kind="IVF64,SQ8")
    assert "pip install 'reqdedup[ann]'" in caplog.text


def test_an_index_of_other_items_and_a_damaged_file_are_refused(items, path, tmp_path):
    fewer = ItemVectors.of(items.item_id[:-1], items.vectors[:-1])
    with pytest.raises(ValueError, match="an index of the bundle's 3999 items required, found 4000 of width 16"):
        open_index(path, fewer)
    for name, content in (("short", path.read_bytes()[:50]), ("text", b"no index at all"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="an index with inverted lists of faiss required"):
            open_index(tmp_path / name, items)


def test_threads_may_share_it(items, index):
    from concurrent.futures import ThreadPoolExecutor

    assert isinstance(index, ApproximateIndex)
    users = items.vectors[:50]
    alone = [nearest(items, index, user_D, 10, ItemFilter())[0].tolist() for user_D in users]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda u: nearest(items, index, u, 10, ItemFilter())[0].tolist(), users)) == alone
