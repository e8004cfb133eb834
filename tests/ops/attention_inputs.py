"""Queries, keys and values of awkward shapes, and what a backend makes of them."""

from __future__ import annotations

import torch

from reqdedup.ops.crossing_attention import crossing_attention
from reqdedup.ops.prefixes import Prefixes

NAMES = ("query", "self_key", "self_value", "key", "value")


SHAPES = {  # history lengths, rows of each request, heads, head width
    "ragged": ([3, 0, 63, 5], [2, 4, 0, 7], 2, 8),
    "one row, no history": ([0], [1], 1, 4),
    "no rows": ([5, 2], [0, 0], 1, 4),
    "no history at all": ([0, 0], [3, 2], 2, 3),
    "lengths that share a call and lengths that do not": ([300, 63, 64, 1000, 300, 70], [1, 20, 5, 3, 2, 5], 2, 16),
    "equal lengths": ([40, 40, 40], [6, 6, 6], 3, 5),
    "widest head": ([7, 20], [3, 33], 1, 256),
}


SHARED = {  # context lengths, prefixes of each context's requests, rows of each request, heads, head width
    "ragged": ([5, 0, 70], [[5, 3, 0], [0], [70, 1, 64, 70]], [2, 3, 1, 2, 0, 4, 5, 1], 2, 8),
    "one request each": ([3, 9], [[3], [9]], [2, 2], 2, 4),
    "nobody sees the end, or anything": ([8, 6, 4], [[5, 2], [0, 0], []], [1, 2, 3, 1], 1, 3),
    "long": ([300, 1000], [[290, 300, 300], [1000, 260]], [4, 1, 2, 3, 5], 2, 16),
}


def random_inputs(shape, dtype=torch.float64, *, seed=0):
    lengths, rows, num_heads, head_width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (sum(rows), sum(rows), sum(rows), sum(lengths), sum(lengths))
    tensors = [torch.randn(n, num_heads, head_width, generator=generator, dtype=torch.float64) for n in sizes]
    offsets = [torch.tensor([0, *counts]).cumsum(0) for counts in (lengths, rows)]
    return [x.to(dtype).requires_grad_() for x in tensors], offsets


def shared_inputs(shape, dtype=torch.float64):
    lengths, prefix_lengths, rows, num_heads, head_width = shape
    tensors, offsets = random_inputs((lengths, rows, num_heads, head_width), dtype)
    request_offsets_G1 = torch.tensor([0, *map(len, prefix_lengths)]).cumsum(0)
    return tensors, offsets, Prefixes(request_offsets_G1, torch.tensor([n for ns in prefix_lengths for n in ns]))


def value_and_gradients(backend, tensors, offsets, grad, prefixes=None):
    out = crossing_attention(*tensors, *offsets, prefixes=prefixes, backend=backend)
    grads = torch.autograd.grad(out, tensors, grad.to(out.dtype), allow_unused=True)  # the loop skips what nobody reads
    return [out, *(torch.zeros_like(x) if g is None else g for x, g in zip(tensors, grads, strict=True))]
