"""Kept contexts stay within their bytes."""

from __future__ import annotations

import numpy as np

from reqdedup.serving.ranking.context_cache import ContextCache
from tests.serving.rankers import rank_request, small_model, small_ranker


def test_least_recently_used_contexts_leave_first_and_bytes_are_counted():
    rng, ranker = np.random.default_rng(0), small_ranker(cache=ContextCache(75_000))
    requests = [rank_request(rng, 64, 2, user_id=user) for user in range(4)]
    for request in (*requests[:3], requests[0]):
        ranker.rank(request)
    size = 2 * 2 * 64 * 32 * 4 + 64 * 12 + 1024
    assert ranker.cache.num_bytes == 2 * size <= 75_000 < 3 * size
    assert [ranker.rank(request).context for request in (requests[0], requests[2], requests[1])] == ["kept"] * 2 + [
        "computed"
    ]
    assert ranker.cache.counts.evicted == 3
    assert 0 < ranker.cache.counts.reuse < 1


def test_a_context_larger_than_the_cache_makes_no_other_leave():
    rng, ranker = np.random.default_rng(0), small_ranker(small_model(max_history=300), cache=ContextCache(75_000))
    small, large = rank_request(rng, 64, 2, user_id=0), rank_request(rng, 300, 2, user_id=1)
    assert [ranker.rank(one).context for one in (small, large, large, small)] == ["computed"] * 3 + ["kept"]
    assert (len(ranker.cache), ranker.cache.counts.evicted) == (1, 0)
