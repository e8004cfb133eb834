"""HSTU's attention against plain loops, values and gradients; parts of a history added up are the whole."""

from __future__ import annotations

import itertools

import pytest
import torch

from reqdedup.ops.pointwise_attention import NUM_BUCKETS, Pointwise, bucket_of, crossing_naive, history_naive
from tests.ops.attention_inputs import random_inputs, shared_inputs

CROSSED = {
    "ragged": ([3, 0, 20, 5], [2, 4, 0, 7], 2, 4),
    "one row, no history": ([0], [1], 1, 4),
    "no rows": ([5, 2], [0, 0], 1, 4),
    "a long one": ([70], [3], 2, 3),
}


def bias(num_heads):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(num_heads, NUM_BUCKETS, generator=generator, dtype=torch.float64, requires_grad=True)


def assert_equal(found, wanted, inputs):
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    grads = [torch.autograd.grad(x, inputs, weight, allow_unused=True) for x in (found, wanted)]
    for x, ours, law in zip(inputs, *grads, strict=True):
        law = torch.zeros_like(x) if law is None else law
        torch.testing.assert_close(ours, law, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lengths", [[5, 0, 33, 1, 17], [9, 9], [1], [0, 0], [40, 41]])
def test_each_token_reads_its_own_history(lengths):
    offsets_R1 = torch.tensor([0, *lengths]).cumsum(0)
    inputs = [torch.randn(sum(lengths), 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    bias_HM = bias(2)
    found = Pointwise(bias_HM).history(*inputs, offsets_R1)
    if sum(lengths):
        assert_equal(found, history_naive(*inputs, offsets_R1, bias_HM), [*inputs, bias_HM])
    else:
        assert (found.shape, found.requires_grad) == ((0, 2, 3), True)


@pytest.mark.parametrize("shape", CROSSED)
def test_each_candidate_reads_its_request_and_itself(shape):
    tensors, offsets = random_inputs(CROSSED[shape])
    bias_HM = bias(tensors[0].shape[1])
    contexts = [(tensors[3][a:b], tensors[4][a:b]) for a, b in itertools.pairwise(offsets[0].tolist())]
    wanted = crossing_naive(*tensors[:3], contexts, offsets[1], bias_HM)
    assert_equal(Pointwise(bias_HM).crossing(*tensors, *offsets), wanted, [*tensors, bias_HM])
    apart = Pointwise(bias_HM).in_parts(*tensors[:3], contexts, offsets[1])
    torch.testing.assert_close(apart, wanted, rtol=1e-11, atol=1e-11)


def test_requests_that_share_a_context_see_their_own_prefix():
    tensors, offsets, prefixes = shared_inputs(([5, 0, 20], [[5, 3, 0], [0], [20, 1]], [2, 3, 1, 2, 0, 4], 2, 4))
    bias_HM, begin_R = bias(2), prefixes.begin(offsets[0]).tolist()
    seen = [slice(b, b + n) for b, n in zip(begin_R, prefixes.prefix_length_R.tolist(), strict=True)]
    contexts = [(tensors[3][one], tensors[4][one]) for one in seen]
    wanted = crossing_naive(*tensors[:3], contexts, offsets[1], bias_HM)
    assert_equal(Pointwise(bias_HM).crossing(*tensors, *offsets, prefixes=prefixes), wanted, [*tensors, bias_HM])


@pytest.mark.parametrize(("num_past", "num_new"), [(0, 1), (0, 9), (30, 1), (17, 12)])
def test_new_tokens_read_the_past_and_those_before_them(num_past, num_new):
    query, key, value = (torch.randn(num_past + num_new, 2, 3, dtype=torch.float64) for _ in range(3))
    new, past = slice(num_past, None), slice(0, num_past)
    found = Pointwise(bias(2)).append(query[new], key[new], value[new], key[past], value[past])
    wanted = history_naive(query, key, value, torch.tensor([0, num_past + num_new]), bias(2))[new]
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_distances_fall_into_buckets_that_rise():
    bucket = bucket_of(torch.arange(20_000))
    assert bucket[:9].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6]
    assert bucket.diff().min() == 0
    assert int(bucket[-1]) == NUM_BUCKETS - 1


def test_what_it_cannot_do_is_refused():
    pointwise, x = Pointwise(bias(2)), torch.zeros(3, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="causal attention required, found bidirectional"):
        pointwise.history(x, x, x, torch.tensor([0, 3]), is_causal=False)
    with pytest.raises(ValueError, match=r"row offsets \[R \+ 1\] of 2 contexts required, found \(2,\)"):
        pointwise.in_parts(x, x, x, [(x, x), (x, x)], torch.tensor([0, 3]))
