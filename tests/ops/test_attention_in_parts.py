"""Attention whose keys and values lie apart equals attention to them side by side."""

from __future__ import annotations

import pytest
import torch

from reqdedup.ops.attention_in_parts import (
    append_attention,
    append_attention_concatenated,
    crossing_attention_concatenated,
    crossing_attention_in_parts,
)
from reqdedup.ops.crossing_attention import crossing_attention, crossing_attention_naive
from reqdedup.ops.history_attention import history_attention_naive

CASES = {
    "ragged": ([8, 0, 64, 7, 63], [3, 4, 0, 7, 1]),
    "one request": ([146], [6]),
    "no context at all": ([0, 0], [2, 3]),
    "no rows": ([4, 9], [0, 0]),
    "no requests": ([], []),
}


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_contexts_apart_are_read_as_packed_ones(name):
    lengths, rows = CASES[name]
    contexts = [(randn(n, 2, 4, seed=10 * r), randn(n, 2, 4, seed=500 + 10 * r)) for r, n in enumerate(lengths)]
    own = [randn(sum(rows), 2, 4, seed=seed) for seed in (1, 2, 3)]
    row_offsets_R1 = torch.tensor([0, *rows]).cumsum(0)
    found = crossing_attention_in_parts(*own, contexts, row_offsets_R1)
    packed = [torch.cat([randn(0, 2, 4, seed=0), *(context[i] for context in contexts)]) for i in (0, 1)]
    offsets_R1 = torch.tensor([0, *lengths]).cumsum(0)
    wanted = crossing_attention(*own, *packed, offsets_R1, row_offsets_R1, backend="naive")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    elsewhere = crossing_attention_concatenated(*own, contexts, row_offsets_R1)  # the form of other devices
    torch.testing.assert_close(elsewhere, wanted, rtol=1e-10, atol=1e-12)


def test_parts_of_another_number_of_requests_are_refused():
    own = [randn(2, 2, 4, seed=seed) for seed in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"row offsets \[R \+ 1\] of 2 contexts required, found \(2,\)"):
        crossing_attention_in_parts(*own, [own[:2], own[:2]], torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"of one shape \[B, H, K\] required"):
        crossing_attention_in_parts(own[0], own[1][:1], own[2], [own[:2]], torch.tensor([0, 2]))


@pytest.mark.parametrize(("num_past", "num_new"), [(0, 1), (0, 64), (64, 1), (128, 63), (1, 200), (300, 64)])
def test_new_tokens_read_the_past_and_those_before_them(num_past, num_new):
    query, key, value = (randn(num_past + num_new, 2, 4, seed=seed) for seed in (1, 2, 3))
    new, past = slice(num_past, None), slice(0, num_past)
    parts = (query[new], key[new], value[new], key[past], value[past])
    found = append_attention(*parts)
    torch.testing.assert_close(append_attention_concatenated(*parts), found, rtol=1e-10, atol=1e-12)
    wanted = history_attention_naive(query, key, value, torch.tensor([0, num_past + num_new]))[new]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_without_padding_a_request_has_the_same_bits_beside_others_of_any_length():
    lengths, rows = [40, 45, 255, 3], [16, 32, 16, 48]
    own = [randn(sum(rows), 2, 16, seed=seed).float() for seed in (1, 2, 3)]
    packed = [randn(sum(lengths), 2, 16, seed=seed).float() for seed in (4, 5)]
    offsets_R1, row_offsets_R1 = (torch.tensor([0, *x]).cumsum(0) for x in (lengths, rows))
    together = crossing_attention(*own, *packed, offsets_R1, row_offsets_R1, padded_context_at_most=0)
    wanted = crossing_attention_naive(*own, *packed, offsets_R1, row_offsets_R1)
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-5)
    for r in range(4):
        mine, context = slice(*row_offsets_R1[r : r + 2].tolist()), slice(*offsets_R1[r : r + 2].tolist())
        alone = crossing_attention(
            *(x[mine] for x in own),
            *(x[context] for x in packed),
            torch.tensor([0, lengths[r]]),
            torch.tensor([0, rows[r]]),
            padded_context_at_most=0,
        )
        assert torch.equal(alone, together[mine])
