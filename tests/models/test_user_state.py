"""The user tower's halves: a state of the history alone, a head that the request enters; bits of each request alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from reqdedup.models import TwoTower, naive
from reqdedup.models.two_tower import UserHead
from tests.models.batches import SHAPES, random_batch, two_tower_config


def model(**changes) -> TwoTower:
    torch.manual_seed(0)
    tower = TwoTower(two_tower_config(**changes)).eval()
    with torch.no_grad():
        for norm in tower.user_mlp.norms:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return tower


def states(tower, batch) -> torch.Tensor:
    bounds = itertools.pairwise(batch.history_offsets_R1.tolist())
    histories = [{name: x_T[begin:end] for name, x_T in batch.history.items()} for begin, end in bounds]
    return torch.stack([tower.user_state(history) for history in histories])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("changes", [{}, {"positions": "rope", "positions_from": "end"}, {"history_attention": "bidirectional"}, {"request_categories": (), "request_vectors": (), "request_numbers": ()}], ids=str)  # fmt: skip
def test_head_of_state_equals_the_tower_computed_once_per_row(shape, changes):
    tower, batch = model(**changes).double(), random_batch(*SHAPES[shape])
    twin = naive.TwoTower(tower.config).eval().double()
    twin.load_state_dict(tower.state_dict())
    user_RD = tower.user_head(states(tower, batch), batch.request)
    torch.testing.assert_close(batch.expand(user_RD), twin.user_tower(batch), rtol=1e-10, atol=1e-12)


def test_a_request_has_the_same_bits_alone_and_in_any_batch():
    tower = model(width=32, num_heads=4, ffn_width=64, hidden_widths=(33, 16))
    lengths = [0, 1, 15, 63, 64, 65, 200, 301]
    batch = random_batch(lengths, [1] * len(lengths))
    state_RD = states(tower, batch)
    user_RD = tower.user_head(state_RD, batch.request)
    for r in range(len(lengths)):
        request = {name: x_R[r : r + 1] for name, x_R in batch.request.items()}
        assert torch.equal(user_RD[r : r + 1], tower.user_head(state_RD[r : r + 1], request))
    assert tower.user_head(state_RD[:0], {}).shape == (0, 5)


@pytest.mark.parametrize("changes", [{}, {"request_categories": ("device", "kind"), "request_numbers": ()}, {"request_categories": (), "request_vectors": (), "request_numbers": ()}, {"hidden_widths": (9,)}], ids=str)  # fmt: skip
def test_the_folded_head_equals_the_modules(changes):
    tower, batch = model(**changes), random_batch([7, 0, 12, 3], [1] * 4)
    batch.request["kind"] = torch.tensor([-1, 2**62, 5, 5])
    batch.request["age_days"] = torch.tensor([float("nan"), -3.0, float("inf"), 1e6])
    state_RD, head = states(tower, batch), UserHead(tower)
    user_RD = tower.user_head(state_RD, batch.request).numpy()
    for r in range(4):
        request = {name: x_R[r : r + 1] for name, x_R in batch.request.items()}
        user_D = head(state_RD[r].numpy(), request)
        assert user_D.dtype == np.float32
        np.testing.assert_allclose(user_D, user_RD[r], rtol=1e-5, atol=1e-6)
        assert np.array_equal(user_D, head(state_RD[r].numpy(), request))
    with pytest.raises(ValueError, match="evaluation mode required"):
        UserHead(model().train())


def test_what_is_in_training_is_refused():
    tower, batch = model().train(), random_batch([3], [1])
    with pytest.raises(ValueError, match="evaluation mode required"):
        tower.user_state(batch.history)
    with pytest.raises(ValueError, match="evaluation mode required"):
        tower.user_head(torch.zeros(1, 8), batch.request)
