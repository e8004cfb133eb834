"""The last layer at the last events alone, beside the last layer at all events."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import user_batch
from reqdedup.models import TwoTower, naive
from reqdedup.models.histories import last_of_history
from reqdedup.models.transformer import HistoryTransformer
from reqdedup.models.two_tower import model as two_tower
from reqdedup.ops.prefixes import Prefixes
from tests.models.batches import offsets, two_tower_config

OWN, SHARED = None, [[2, 5, 0], [], [63, 1], [], [1]]
"""Lengths of the prefixes that the requests of each history see; OWN: one request that sees all of it."""


@pytest.mark.parametrize(
    ("changes", "prefix_lengths"),
    [
        *(
            (changes, lengths)
            for changes in (
                {"positions": "learned"},
                {"positions": "rope", "num_layers": 1},
                {"positions": "rope", "layer": "hstu"},
            )
            for lengths in (OWN, SHARED)
        ),
        # a history that attends to what comes later has no prefixes to share
        ({"positions": "learned", "positions_from": "end", "history_attention": "bidirectional"}, OWN),
    ],
    ids=str,
)
def test_it_is_the_last_layer_at_these_events(changes, prefix_lengths):
    torch.manual_seed(0)
    transformer = HistoryTransformer(two_tower_config(**changes)).double()
    offsets_G1 = offsets([5, 0, 63, 2, 1])
    prefixes = prefix_lengths and Prefixes(
        offsets([len(one) for one in prefix_lengths]), torch.tensor([x for one in prefix_lengths for x in one])
    )
    x_TD = torch.randn(71, 8, dtype=torch.float64, requires_grad=True)
    found_RD = transformer.last_events(x_TD, offsets_G1, prefixes)
    wanted_RD = last_of_history(transformer(x_TD, offsets_G1)[0], offsets_G1, prefixes)
    length_R = prefixes.prefix_length_R if prefixes else offsets_G1.diff()
    weight_RD = torch.randn_like(wanted_RD) * (length_R > 0)[:, None]
    torch.testing.assert_close(found_RD * weight_RD, wanted_RD * weight_RD)
    inputs = [x_TD, *transformer.parameters()]
    found, wanted = (
        torch.autograd.grad((out_RD * weight_RD).sum(), inputs, allow_unused=True) for out_RD in (found_RD, wanted_RD)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("few", [True, False])
def test_a_tower_is_the_same_whichever_way_it_reads_the_last_event(few, monkeypatch):
    """Requests of one user that share a history, of which they read few events, or most."""
    batch = user_batch(num_users=3, requests_per_user=4, rows=2, max_history=16, new_events=2)
    names = {"history_categories": ("action",), "request_categories": ("device",), "item_categories": ()}
    config = two_tower_config(**names, request_vectors=(), request_numbers=(), pooling="last", share_context="user")
    torch.manual_seed(0)
    ours, duplicated = (kind(config).double() for kind in (TwoTower, naive.TwoTower))
    duplicated.load_state_dict(ours.state_dict())
    monkeypatch.setattr(two_tower, "EVENTS_A_READER", 0 if few else 10**9)
    user_BD, wanted_BD = batch.expand(ours.user_tower(batch)), duplicated.user_tower(batch)
    torch.testing.assert_close(user_BD, wanted_BD)
    weight_BD = torch.randn_like(user_BD)
    for out_BD in (user_BD, wanted_BD):
        (out_BD * weight_BD).sum().backward()
    found, wanted = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in (ours, duplicated)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
