"""Batches for models that share a context: a user's requests come together, and their windows begin at one event."""

from __future__ import annotations

import itertools

import pytest
import torch

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCAT, DCATConfig, naive
from reqdedup.training.blocks import HistoryCut
from reqdedup.training.loader import RequestLoader
from tests.training.logs import BatchesOnly, RandomLog

LOG = SyntheticLogConfig(
    num_users=40,
    mean_requests_per_user=5,
    mean_fan_out=4,
    max_fan_out=20,
    history_scale=1 / 80,
    max_history=128,
    num_items=1_000,
    users_per_block=10,
)


@pytest.fixture(scope="module")
def log() -> RandomLog:
    """Sorted by user and request, as a table is."""
    groups = [group.sort_by([("user_id", "ascending"), ("request_id", "ascending")]) for group in synthesize(LOG)]
    return RandomLog(groups, {}, synthetic_schema(LOG))


def users_of(batch) -> list[int]:
    return [user for user, _ in itertools.groupby(batch.user_id_R.tolist())]


def test_a_users_requests_are_neighbours_and_users_are_shuffled(log):
    by_user = {
        epoch: [users_of(batch) for batch in RequestLoader(log, requests_per_batch=30, shuffle="users", seed=epoch)]
        for epoch in (0, 1)
    }
    assert by_user[0] != by_user[1]
    for batches in by_user.values():
        assert all(len(users) == len(set(users)) for users in batches)
        split = sum(map(len, batches)) - len({user for users in batches for user in users})
        assert split < len(batches)  # only a user at the edge of a batch is cut
    order = [users[0] for users in by_user[0]]
    assert order != sorted(order)


@pytest.mark.slow
def test_windows_cut_by_the_loader_can_share_their_context(log):
    config = DCATConfig.from_schema(
        log.schema, labels=["click"], share_context="user", max_history=64, width=8, num_heads=2
    )
    loader = RequestLoader(
        log,
        requests_per_batch=30,
        shuffle="users",
        columns=(*config.columns, "click"),
        cut=HistoryCut(max_events=config.max_history),
    )
    model, duplicated = DCAT(config), naive.DCAT(config)
    duplicated.load_state_dict(model.state_dict())
    requests = contexts = 0
    for batch in loader:
        batch.validate()  # prefixes included
        contexts += len(batch.context_groups().longest_G)
        requests += batch.num_requests
        torch.testing.assert_close(model(batch), duplicated(batch), rtol=1e-4, atol=1e-5)
    assert contexts < 0.6 * requests


def test_a_source_without_row_groups_keeps_users_together_too(log):
    batches = list(RequestLoader(BatchesOnly(log, 50), requests_per_batch=1000, shuffle="users"))
    assert all(len(users_of(batch)) == len(set(users_of(batch))) for batch in batches)
    assert sum(batch.num_requests for batch in batches) == sum(
        len(batch.user_id_R) for batch in RequestLoader(log, requests_per_batch=1000)
    )
