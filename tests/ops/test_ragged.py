"""Packed tokens to rectangles and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.ops.ragged import Padding


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 80), min_size=1, max_size=12))
def test_tokens_survive_the_way_through_rectangles_and_padding_is_bounded(lengths):
    padding = Padding.of(torch.tensor([0, *lengths]).cumsum(0))
    x_THK = torch.randn(sum(lengths), 2, 3, requires_grad=True)
    rectangles = padding.pad(x_THK)
    assert padding.longest == max(lengths)
    assert sum(sum(r.lengths) for r in padding.rectangles) == sum(lengths)
    for rectangle in padding.rectangles:
        assert rectangle.shape[1] <= 16 or rectangle.shape[1] <= 1.2 * min(rectangle.lengths) + 1
    if not rectangles:
        return
    packed = padding.pack(rectangles)
    assert torch.equal(packed, x_THK)
    grad = torch.randn_like(packed)
    assert torch.equal(torch.autograd.grad(packed, x_THK, grad)[0], grad)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 0, 5], [7]])
def test_histories_of_one_length_are_a_view(lengths):
    x_THK = torch.randn(sum(lengths), 2, 3)
    (rectangle,) = Padding.of(torch.tensor([0, *lengths]).cumsum(0)).pad(x_THK)
    assert rectangle.data_ptr() == x_THK.data_ptr()
