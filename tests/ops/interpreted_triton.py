"""The Triton kernels in Triton's interpreter against the loop, forward and backward.

The interpreter is chosen by TRITON_INTERPRET=1 before Triton is imported, so `test_crossing_attention_triton.py` runs
this file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from reqdedup.ops.crossing_attention import crossing_attention
from reqdedup.ops.crossing_attention_triton import crossing_attention_triton, tiles
from tests.ops.attention_inputs import NAMES, SHAPES, SHARED, random_inputs, shared_inputs, value_and_gradients

SHORTER = {  # the interpreter takes as long for a tile as a GPU for a thousand
    **SHAPES,
    "lengths that share a call and lengths that do not": ([130, 63, 64, 200, 130, 70], [1, 20, 5, 3, 2, 5], 2, 16),
}


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        *((shape, torch.float32, 1e-5) for shape in SHORTER),
        ("ragged", torch.bfloat16, 4e-2),
        ("ragged", torch.float16, 4e-3),
    ],
    ids=str,
)
def test_the_kernels_equal_the_loop(shape, dtype, tolerance):
    tensors, offsets = random_inputs(SHORTER[shape], dtype)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    grad = torch.randn_like(tensors[0])
    expected = value_and_gradients("naive", exact, offsets, grad.double())
    found = value_and_gradients("triton", tensors, offsets, grad)
    for name, ours, law in zip(("out", *NAMES), found, expected, strict=True):
        torch.testing.assert_close(
            ours.double(), law, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shape", [name for name in SHARED if name != "long"])
def test_the_kernels_equal_the_loop_on_shared_contexts(shape):
    tensors, offsets, prefixes = shared_inputs(SHARED[shape], torch.float32)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    grad = torch.randn_like(tensors[0])
    expected = value_and_gradients("naive", exact, offsets, grad.double(), prefixes)
    found = value_and_gradients("triton", tensors, offsets, grad, prefixes)
    for name, ours, law in zip(("out", *NAMES), found, expected, strict=True):
        torch.testing.assert_close(ours.double(), law, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_requests_larger_than_a_tile_and_rows_with_a_step():
    (query, *_), offsets = random_inputs(([130, 0, 65], [65, 3, 129], 2, 16), torch.float32)
    packed = torch.randn(195 + 197, 2, 2, 16)  # keys beside values, as a fused projection gives them
    arguments = (query, *packed[195:].unbind(1), *packed[:195].unbind(1), *offsets)
    torch.testing.assert_close(
        crossing_attention_triton(*arguments), crossing_attention(*arguments), rtol=1e-5, atol=1e-5
    )


def test_memory_that_a_program_should_not_read_or_leave_is_never_seen(monkeypatch):
    """Outputs start as NaN and come back finite: every element is written."""
    new_empty = torch.Tensor.new_empty

    def new_full_of_nan(self, *size, **options):
        x = new_empty(self, *size, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", new_full_of_nan)
    tensors, offsets = random_inputs(([3, 0, 63, 5, 9], [2, 4, 0, 7, 0], 2, 8), torch.float32)
    found = value_and_gradients("triton", tensors, offsets, torch.ones_like(tensors[0]))
    assert all(x.isfinite().all() for x in found)


def test_tiles_cover_every_element_of_every_request_once():
    offsets_R1 = torch.tensor([0, 5, 5, 69, 70, 134])
    request, start = tiles(offsets_R1, 134, 32)
    covered = []
    for r, first in zip(request.tolist(), start.tolist(), strict=True):
        if r < 5:
            covered += [(r, i) for i in range(first, min(first + 32, int(offsets_R1[r + 1])))]
    assert sorted(covered, key=lambda pair: pair[1]) == [
        (r, i) for r in range(5) for i in range(int(offsets_R1[r]), int(offsets_R1[r + 1]))
    ]
    assert len(set(covered)) == len(covered) == 134


def test_types_that_the_kernels_do_not_serve_are_refused():
    tensors, offsets = random_inputs(SHAPES["ragged"])
    with pytest.raises(ValueError, match=r"found torch.float64 and 8; use sdpa"):
        crossing_attention(*tensors, *offsets, backend="triton")
