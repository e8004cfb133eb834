"""Every figure beside its definition as a plain loop over rows, for many weightings of the users at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reqdedup.training.judgement import measures
from reqdedup.training.judgement.measures import UserWeights


@pytest.fixture(scope="module")
def rows():
    """60 rows of 8 users in 20 requests, scores with ties; users and weights of 4 draws."""
    rng = np.random.default_rng(1)
    request = np.sort(rng.integers(0, 20, 60))
    user = request // 3 * 10
    score, label = rng.integers(-3, 4, 60) / 2, rng.integers(0, 2, 60).astype(float)
    return user, request, score, label, UserWeights.bootstrap(user, replicates=4, seed=2)


def drawn(weights: UserWeights, n: int) -> list[float]:
    return [weights.weight_NU[n, u] for u in weights.user_B]


def auc_of(pairs: list[tuple[float, float, float]]) -> float:
    """Of (score, label, weight): the weighted share of pairs in the right order."""
    right = total = 0.0
    for s, y, w in pairs:
        for t, z, v in pairs:
            if y > 0 and z == 0:
                right += w * v * ((s > t) + (s == t) / 2)
                total += w * v
    return right / total if total else math.nan


def test_a_bootstrap_draws_as_many_users_as_there_are(rows):
    weights = rows[4]
    assert (weights.weight_NU[0] == 1).all()
    assert (weights.weight_NU.sum(1) == weights.weight_NU.shape[1]).all()
    assert len({tuple(row) for row in weights.weight_NU}) == 5


def test_auc_counts_pairs_with_their_weights(rows):
    _, _, score, label, weights = rows
    for n, found in enumerate(measures.auc(score, label, weights)):
        assert found == pytest.approx(auc_of(list(zip(score, label, drawn(weights, n)))))
    assert np.isnan(measures.auc(score, np.ones(60), weights)).all()
    none = weights.of_rows(np.zeros(0, int))
    assert np.isnan(measures.auc(np.zeros(0), np.zeros(0), none)).all()


@pytest.mark.parametrize("by", ["user", "request"])
def test_auc_within_groups_is_the_mean_of_those_with_both_classes(rows, by):
    user, request, score, label, weights = rows
    group = user if by == "user" else request
    wanted = []
    for n in range(5):
        total = count = 0.0
        for one in np.unique(group):
            at = np.flatnonzero(group == one)
            value = auc_of([(score[b], label[b], 1.0) for b in at])
            if not math.isnan(value):
                total += drawn(weights, n)[at[0]] * value
                count += drawn(weights, n)[at[0]]
        wanted.append(total / count)
    assert measures.auc_within(score, label, group, weights) == pytest.approx(wanted)
    assert np.isnan(measures.auc_within(score, np.zeros(60), group, weights)).all()
    none = weights.of_rows(np.zeros(0, int))
    assert np.isnan(measures.auc_within(np.zeros(0), np.zeros(0), np.zeros(0, int), none)).all()


def test_means_and_log_loss_are_weighted_over_rows(rows):
    _, _, score, label, weights = rows
    losses = measures.log_losses(score, label)
    for b in range(60):
        p = 1 / (1 + math.exp(-score[b]))
        assert losses[b] == pytest.approx(-math.log(p if label[b] else 1 - p))
    for n, found in enumerate(weights.mean(losses)):
        w = drawn(weights, n)
        assert found == pytest.approx(sum(x * y for x, y in zip(w, losses)) / sum(w))
    assert measures.entropy(np.array([0.0, 0.25, 1.0])) == pytest.approx([0, 0.5623351446188083, 0])
    assert np.isnan(measures.entropy(np.array([np.nan]))).all()


def test_deciles_hold_a_tenth_of_the_rows_and_what_came_true_of_them(rows):
    _, _, _, label, weights = rows
    probability = 1 / (1 + np.exp(-np.arange(60) / 10 + 3))
    table = measures.calibration(probability, label, weights)
    assert [row["decile"] for row in table] == list(range(1, 11))
    assert [row["rows"] for row in table] == [6] * 10
    for decile, row in enumerate(table):
        at = slice(6 * decile, 6 * decile + 6)
        assert row["predicted"] == pytest.approx(probability[at].mean())
        assert row["observed"] == pytest.approx(label[at].mean())
        if row["low"] is not None:
            assert 0 <= row["low"] <= row["high"] <= 1
    error = sum(6 * abs(row["predicted"] - row["observed"]) for row in table) / 60
    assert measures.calibration_error(probability, label, weights)[0] == pytest.approx(error)
    same = measures.calibration(np.full(60, 0.3), label, weights)
    assert [row["rows"] for row in same] == [60], "equal predictions stay together"
    assert measures.calibration(np.zeros(0), np.zeros(0), weights.of_rows(np.zeros(0, int))) == []


def test_gains_of_a_rank_and_of_chance():
    rank = np.array([1.0, 2.0, 2.5, 11.0])
    found = measures.gains(rank, 10)
    assert found["recall_at_10"].tolist() == [1, 1, 1, 0]
    assert found["ndcg_at_10"] == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(3.5), 0])
    assert found["mrr_at_10"] == pytest.approx([1, 0.5, 0.4, 0])
    for items in (1, 7, 50):
        ranks = np.arange(1, items + 1, dtype=float)
        for name, chance in measures.chance_gains(items, 10).items():
            assert chance == pytest.approx(measures.gains(ranks, 10)[name].mean())


def test_an_interval_is_the_middle_of_the_replicates():
    values = np.concatenate([[99.0], np.arange(201.0)])
    assert measures.interval(values) == (5.0, 195.0)
    assert measures.interval(np.array([1.0])) == (None, None)
    assert measures.interval(np.array([1.0, np.nan, np.nan])) == (None, None)
