"""A bundle answers plain values as the trained model answers the loader, and a bundle that does not is found out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup.arrays.windows import HistoryCut
from reqdedup.models import Bundle
from reqdedup.serving.bundles.checks import latency_ms, parity, user_vectors
from reqdedup.training import RequestLoader


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_stored_requests_as_plain_values_get_the_bits_of_training(trained_bundles, task):
    bundle = Bundle.load(getattr(trained_bundles, task))
    found = parity(bundle, trained_bundles.checkpoints[task], trained_bundles.source, num_requests=40)
    assert (found.requests, found.differing, found.holds) == (40, 0, True)
    assert found.rows > 100


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_another_window_or_another_weight_is_found_out(trained_bundles, task):
    bundle, checkpoint = Bundle.load(getattr(trained_bundles, task)), trained_bundles.checkpoints[task]
    cut = HistoryCut(max_events=bundle.transforms.cut.max_events, stride=1)
    signature = replace(bundle.signature, transforms=replace(bundle.transforms, cut=cut))
    trained = Bundle.load(getattr(trained_bundles, task))
    with torch.no_grad():
        next(bundle.model.parameters()).mul_(1.001)
    for wrong in (replace(trained, signature=signature), bundle):
        found = parity(wrong, checkpoint, trained_bundles.source, num_requests=40)
        assert 0 < found.differing <= 40
        assert not found.holds


def test_user_vectors_are_those_of_requests_of_the_table_each_once(trained_bundles):
    bundle, cut = Bundle.load(trained_bundles.retrieval), HistoryCut(max_events=96)
    every = RequestLoader(
        trained_bundles.source, requests_per_batch=10_000, shuffle="none", cut=cut, columns=bundle.config.columns
    )
    with torch.no_grad():
        wanted = bundle.model.user_tower(next(iter(every))).numpy()
    found = user_vectors(bundle, trained_bundles.source, num_requests=30)
    distance = np.abs(found[:, None] - wanted[None]).max(axis=2)
    assert (distance.min(axis=1) < 1e-5).all()
    assert len(set(distance.argmin(axis=1).tolist())) == 30
    assert set(distance.argmin(axis=1).tolist()) != set(range(30))  # not the first alone


def test_latency_is_measured_on_stored_requests_and_the_threads_are_given_back(trained_bundles):
    threads = torch.get_num_threads()
    assert 0 < latency_ms(Bundle.load(trained_bundles.ranking), trained_bundles.source, num_requests=3) < 10_000
    assert torch.get_num_threads() == threads
