"""Retrieval finds what a plain loop over all items finds, whatever the filter, in the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from reqdedup.serving.requests import ItemFilter, RequestError
from reqdedup.serving.retrieval.item_index import ExactIndex, exact_scores, nearest
from reqdedup.serving.retrieval.item_vectors import ItemVectors

WIDTH = 7


def unit_vectors(num, *, seed=0, width=WIDTH):
    vectors = np.random.default_rng(seed).standard_normal((num, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def items_of(num, *, seed=0, distinct=None):
    """Items with ids in no order, every vector `num / distinct` times, and two columns."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(10 * num + 1, num, replace=False) - num
    vectors = (
        unit_vectors(distinct or num, seed=seed)[rng.permutation(num) % (distinct or num)] if num else unit_vectors(0)
    )
    columns = {"category": rng.integers(0, 5, num).astype(np.int32), "language": rng.integers(0, 3, num)}
    return ItemVectors.of(ids, vectors, columns)


def by_definition(items, user_D, k, filter):
    """Every item, one by one."""
    found = []
    for row, item in enumerate(items.item_id.tolist()):
        if filter.allow is not None and item not in filter.allow:
            continue
        if filter.deny is not None and item in filter.deny:
            continue
        if any(items.columns[name][row] not in values for name, values in filter.categories.items()):
            continue
        found.append((-exact_scores(items.vectors[row : row + 1], user_D)[0], item))
    return [(item, -score) for score, item in sorted(found)][:k]


def check(items, user_D, k, filter, index=None):
    row, score, kind = nearest(items, index or ExactIndex(items), user_D, k, filter)
    assert list(zip(items.item_id[row].tolist(), score.tolist())) == by_definition(items, user_D, k, filter)
    return kind


def filters(items, rng):
    ids = items.item_id
    yield ItemFilter()
    yield ItemFilter(allow=np.zeros(0, np.int64))
    yield ItemFilter(categories={"category": np.array([], np.int64)})
    yield ItemFilter(categories={"category": np.array([2])})
    yield ItemFilter(categories={"category": np.array([1, 3, 77]), "language": np.array([0, 0, 2])})
    for share in (0.02, 0.5, 0.99):
        some = rng.choice(ids, int(share * len(ids)))
        yield ItemFilter(deny=some)
        yield ItemFilter(allow=np.append(some, 10**15))
        yield ItemFilter(allow=some, deny=rng.choice(ids, len(ids) // 3), categories={"language": np.array([1, 2])})


@pytest.mark.slow
@pytest.mark.parametrize(("num", "distinct"), [(1, 1), (40, 40), (1500, 1500), (1500, 3), (900, 60)])
def test_the_nearest_are_those_of_a_loop_over_all_items(num, distinct):
    items, rng = items_of(num, distinct=distinct), np.random.default_rng(1)
    for number, filter in enumerate(filters(items, rng)):
        for k in (1, 3, 2 * num):
            check(items, unit_vectors(1, seed=number)[0], k, filter)


def test_equal_vectors_come_in_the_order_of_their_ids():
    items = items_of(1000, distinct=1)
    row, score, _ = nearest(items, ExactIndex(items), items.vectors[0], 10, ItemFilter())
    assert row.tolist() == list(range(10))
    assert len(set(score.tolist())) == 1


def test_no_items_no_answer():
    items = items_of(0)
    check(items, unit_vectors(1)[0], 5, ItemFilter(deny=np.array([3]), categories={"category": np.array([1])}))


def test_a_long_deny_list_is_answered_exactly(monkeypatch):
    items = items_of(400)
    monkeypatch.setattr("reqdedup.serving.retrieval.item_index.MOST_DENIED", 20)
    check(items, unit_vectors(1)[0], 10, ItemFilter(deny=items.item_id[::2]), FewRows(items))


class FewRows(ExactIndex):
    """An index that finds only a few."""

    kind = "few"

    def propose(self, user_D, k):
        return super().propose(user_D, k)[:5]


def test_what_an_index_finds_too_little_of_is_searched_exactly():
    items, user_D = items_of(100), unit_vectors(1, seed=3)[0]
    assert check(items, user_D, 20, ItemFilter(), FewRows(items)) == "exact"
    assert nearest(items, FewRows(items), user_D, 5, ItemFilter())[2] == "few"


def test_the_bits_of_a_score_do_not_depend_on_what_else_is_scored():
    vectors, user_D = unit_vectors(1000, width=64), unit_vectors(1, seed=9, width=64)[0]
    all_scores = exact_scores(vectors, user_D)
    for rows in ([0], [999, 3], np.arange(17, 400, 3)):
        assert np.array_equal(exact_scores(vectors[rows], user_D), all_scores[rows])


def test_items_in_any_order_are_the_same_items():
    ids, vectors = np.array([9, -2, 5]), unit_vectors(3)
    items = ItemVectors.of(ids, vectors, {"category": np.array([7, 8, 9])}, ["nine", "minus two", "five"])
    assert items.item_id.tolist() == [-2, 5, 9]
    assert items.columns["category"].tolist() == [8, 9, 7]
    assert list(items.keys) == ["minus two", "five", "nine"]
    assert np.array_equal(items.vectors, vectors[[1, 2, 0]])


def test_items_that_do_not_fit_and_unknown_categories_are_refused():
    with pytest.raises(ValueError, match="each id once required, found 4 twice"):
        ItemVectors.of(np.array([4, 1, 4]), unit_vectors(3))
    with pytest.raises(ValueError, match="one id, vector and value each required"):
        ItemVectors.of(np.array([4, 1]), unit_vectors(3))
    items = items_of(3)
    with pytest.raises(RequestError, match="required, found 'colour'"):
        nearest(items, ExactIndex(items), unit_vectors(1)[0], 1, ItemFilter(categories={"colour": np.array([1])}))
