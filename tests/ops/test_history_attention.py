"""Attention over packed histories against a loop over the tokens."""

from __future__ import annotations

import pytest
import torch

from reqdedup.ops.history_attention import history_attention, history_attention_naive


@pytest.mark.parametrize("lengths", [[5, 0, 63, 1, 17], [9, 9], [0, 0], [1], [70, 71]])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
def test_each_token_reads_its_own_history(lengths, is_causal):
    offsets_R1 = torch.tensor([0, *lengths]).cumsum(0)
    inputs = [torch.randn(sum(lengths), 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    grad = torch.randn(sum(lengths), 2, 6, dtype=torch.float64)
    found, expected = (
        f(*inputs, offsets_R1, is_causal=is_causal) for f in (history_attention, history_attention_naive)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if sum(lengths):
        for ours, law in zip(
            torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
        ):
            torch.testing.assert_close(ours, law, rtol=1e-12, atol=1e-12)
