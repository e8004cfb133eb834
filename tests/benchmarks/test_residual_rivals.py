"""Neighbours of residuals are what plain loops over users and ratings say, and see earlier rows alone."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.residual_rivals import Neighbours, Ratings
from reqdedup.models.baselines.means import PRIOR_ROWS, USER_PRIOR_ROWS

SHRINKAGE, DAMPING = 3.0, 2.0


def ratings(num_users=7, num_items=9, seed=0):
    rng = np.random.default_rng(seed)
    user_N, item_N = np.divmod(np.flatnonzero(rng.random(num_users * num_items) < 0.6), num_items)
    time_N = rng.integers(0, 4, len(user_N))  # several of one time
    order = np.lexsort((time_N, user_N))
    label_N = rng.integers(0, 2, len(user_N)).astype(np.float64)
    return Ratings(user_N[order], time_N[order], item_N[order], label_N)


def test_they_equal_plain_loops():
    rows = ratings()
    fits_N = rows.user_N != 2
    all_of = list(zip(rows.user_N.tolist(), rows.time_N.tolist(), rows.item_N.tolist(), rows.label_N.tolist()))
    known = [row for row, fits in zip(all_of, fits_N) if fits]
    overall = sum(label for *_, label in known) / len(known)
    mean = {}
    for item in range(rows.num_items):
        labels = [label for _, _, i, label in known if i == item]
        mean[item] = (sum(labels) + PRIOR_ROWS * overall) / (len(labels) + PRIOR_ROWS)
    residual = {}
    for user in {row[0] for row in known}:
        own = [(item, label - mean[item]) for u, _, item, label in known if u == user]
        shift = sum(x for _, x in own) / (len(own) + 10)
        residual |= {(user, item): x - shift for item, x in own}

    def alike(i, j):
        both = [u for u in range(7) if (u, i) in residual and (u, j) in residual]
        if i == j or not both:
            return 0.0
        product = sum(residual[u, i] * residual[u, j] for u in both)
        squares = [sum(residual[u, k] ** 2 for u in both) for k in (i, j)]
        return max(0.0, product / math.sqrt(squares[0] * squares[1] + 1e-9) * len(both) / (len(both) + SHRINKAGE))

    found = Neighbours.of(rows, fits_N, SHRINKAGE).features(rows, DAMPING)
    for n, (user, time, item, _) in enumerate(all_of):
        earlier = [(i, label - mean[i]) for u, t, i, label in all_of if u == user and t < time]
        own = sum(x for _, x in earlier) / (len(earlier) + USER_PRIOR_ROWS)
        weight = [alike(item, i) for i, _ in earlier]
        near = sum(w * (x - own) for w, (_, x) in zip(weight, earlier)) / (sum(weight) + DAMPING)
        np.testing.assert_allclose(found[n, :2], [mean[item] + own, mean[item] + own + near], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[n, 2], sum(weight), rtol=1e-4, atol=1e-5)
    assert (found[:, 2] > 0).sum() > 10
