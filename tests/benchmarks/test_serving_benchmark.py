"""The serving benchmark compares equal answers, and traffic is what it says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import serving
from benchmarks.interleaved import interleaved


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_variant_answers_alike_and_goes_through_the_same_requests(monkeypatch):
    monkeypatch.setattr(serving, "USERS", 5)
    model = serving.ranking_model(64)
    runs, rankers = serving.variants(model, serving.Traffic(64, 3), 2)
    timings = interleaved(runs, rounds=2)
    assert {run.at for run in runs.values()} == {3}
    rows = list(serving._kept_rows(timings, model, 3, 0.5))
    assert len(rows) == 10
    for ranker in rankers.values():
        counts = ranker.cache.counts
        assert counts.kept + counts.extended + counts.computed == 3 * serving.SEGMENT
        assert counts.reuse > 0.5


def test_an_answer_that_differs_stops_the_benchmark():
    model, traffic = serving.ranking_model(64), serving.Traffic(64, 3)
    probe = traffic.requests(2)
    wanted = [torch.zeros(3, 1), torch.zeros(3, 1)]
    with pytest.raises(AssertionError, match="not close"):
        serving._warm(serving.ServerCore(model).step, [], probe, wanted)


def test_new_users_never_come_back():
    requests = serving.Traffic(64, 1, new_users=0.5).requests(100)
    new = [request.user_id for request in requests if request.user_id >= serving.USERS]
    assert 20 < len(new) == len(set(new)) < 80


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    score, label = rng.random(50), rng.random(50) < 0.4
    pairs = [a > b for a in score[label] for b in score[~label]]
    assert serving._auc(score, label) == pytest.approx(np.mean(pairs))
