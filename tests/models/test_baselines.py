"""The baselines beside their definitions as plain loops."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from reqdedup.models import baselines
from reqdedup.models.baselines import Histories, Interactions, ItemMean, ItemUserMean, linear
from reqdedup.models.baselines.means import PRIOR_ROWS, USER_PRIOR_ROWS

ITEMS = 9


@pytest.fixture(scope="module")
def users() -> list[list[int]]:
    """Histories of any length, with repeated items and some that are not known."""
    rng = np.random.default_rng(3)
    return [rng.integers(-1, ITEMS, rng.integers(0, 8)).tolist() for _ in range(30)]


@pytest.fixture(scope="module")
def interactions(users) -> Interactions:
    count = Counter(item for one in users for item in one)
    return Interactions(Histories.of_lists(users), np.array([count[item] for item in range(ITEMS)], np.int64))


def dense(users: list[list[int]]) -> np.ndarray:
    x = np.zeros((len(users), ITEMS))
    for u, one in enumerate(users):
        for item in one:
            if item >= 0:
                x[u, item] = 1
    return x


def in_order(score: np.ndarray, wanted: np.ndarray) -> None:
    """Equal up to what breaks ties."""
    assert score == pytest.approx(wanted, abs=3e-5 * max(1.0, np.abs(wanted).max()))


HISTORIES = [[], [2], [1, 1, 4], [-1], [7, -1], [0, 3, 5, 8]]


def test_popularity_is_the_count_for_every_request(interactions):
    score = baselines.Popularity(interactions).scores(Histories.of_lists(HISTORIES))
    assert score.shape == (6, ITEMS)
    assert (score.argsort(1, kind="stable") == interactions.count_V.argsort(kind="stable")).all()


def test_last_item_counts_what_followed_it(interactions, users):
    followed = defaultdict(Counter)
    for one in users:
        for before, after in pairwise(one):
            if before >= 0 and after >= 0:
                followed[before][after] += 1
    score = baselines.LastItem(interactions).scores(Histories.of_lists(HISTORIES))
    for r, history in enumerate(HISTORIES):
        counts = followed[history[-1]] if history and history[-1] >= 0 else Counter()
        total = max(sum(counts.values()), 1)
        in_order(score[r], np.array([counts[item] / total for item in range(ITEMS)]))
    assert (score[0].argsort(kind="stable") == interactions.count_V.argsort(kind="stable")).all(), "by popularity"


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_neighbours_are_shrunk_cosines_of_the_nearest(interactions, users, decay):
    x, shrinkage, neighbours = dense(users), 2.0, 3
    weight = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            if i != j:
                both = sum(row[i] * row[j] for row in x)
                weight[i, j] = both / (math.sqrt(x[:, i].sum() * x[:, j].sum()) + shrinkage)
    for j in range(ITEMS):
        least = sorted(weight[:, j])[-neighbours]
        weight[weight[:, j] < least, j] = 0
    rule = baselines.ItemNeighbours(interactions, neighbours=neighbours, shrinkage=shrinkage, decay=decay)
    in_order(rule.scores(Histories.of_lists(HISTORIES)), weighted(decay) @ weight)


def weighted(decay: float) -> np.ndarray:
    x = np.zeros((len(HISTORIES), ITEMS))
    for r, history in enumerate(HISTORIES):
        for age, item in enumerate(reversed(history)):
            if item >= 0:
                x[r, item] = max(x[r, item], decay**age)
    return x


def test_an_item_that_nobody_has_is_no_ones_neighbour(users):
    nobody = Interactions(Histories.of_lists([[0, 1], [1]]), np.array([1, 2, 0]))
    score = baselines.ItemNeighbours(nobody, shrinkage=0.0).scores(Histories.of_lists([[0], [2]]))
    assert np.isfinite(score).all()
    assert score[0].argmax() == 1


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(interactions, users):
    x, l2 = dense(users), 1.5
    weight = np.zeros((ITEMS, ITEMS))
    for j in range(ITEMS):
        others = [i for i in range(ITEMS) if i != j]
        a = x[:, others]
        weight[others, j] = np.linalg.solve(a.T @ a + l2 * np.eye(len(others)), a.T @ x[:, j])
    in_order(baselines.Ease(interactions, l2=l2).scores(Histories.of_lists(HISTORIES)), weighted(1.0) @ weight)


def test_items_beyond_the_dense_ones_come_last_by_popularity(interactions, monkeypatch):
    monkeypatch.setattr(linear, "DENSE_ITEMS", 4)
    score = baselines.Ease(interactions).scores(Histories.of_lists([[0, 1]]))[0]
    rest = score[4:]
    assert (rest.argsort(kind="stable") == interactions.count_V[4:].argsort(kind="stable")).all()


def test_factors_prefer_what_users_of_one_taste_share():
    pytest.importorskip("implicit")
    users = [[0, 1, 2, 3]] * 20 + [[4, 5, 6, 7]] * 20
    interactions = Interactions(Histories.of_lists(users), np.full(8, 20))
    score = baselines.ImplicitFactors(interactions, factors=4).scores(Histories.of_lists([[0, 1], [6, 7], []]))
    assert set(np.argsort(-score[0])[:4]) == {0, 1, 2, 3}
    assert set(np.argsort(-score[1])[:4]) == {4, 5, 6, 7}
    assert baselines.ImplicitFactors(interactions).scores(Histories.of_lists([])).shape == (0, 8)


def test_a_users_mean_is_of_strictly_earlier_times():
    rng = np.random.default_rng(0)
    size = 200
    user, time, item = rng.integers(0, 6, size), rng.integers(0, 9, size), rng.integers(0, 5, size)
    label = np.where(rng.random(size) < 0.1, np.nan, rng.integers(0, 2, size))
    known = ~np.isnan(label)
    sums = np.array([label[known & (item == i)].sum() for i in range(5)])
    counts = np.array([(known & (item == i)).sum() for i in range(5)])
    mean = ItemMean(np.arange(5), sums, counts)
    overall = label[known].mean()
    base = {i: (sums[i] + PRIOR_ROWS * overall) / (counts[i] + PRIOR_ROWS) for i in range(5)}
    found = ItemUserMean(mean).predict(user, time, item, label)
    for b in range(size):
        earlier = [n for n in range(size) if user[n] == user[b] and time[n] < time[b] and known[n]]
        own = sum(label[n] - base[item[n]] for n in earlier) / (len(earlier) + USER_PRIOR_ROWS)
        assert found[b] == pytest.approx(base[item[b]] + own)
    assert mean.predict(np.array([77])) == pytest.approx([overall])
    assert np.isnan(ItemMean(np.zeros(0, np.int64), np.zeros(0), np.zeros(0)).predict(np.array([1]))).all()
