"""Packed tokens to rectangles and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.ops.ragged import Padding, Rectangle, length_bucket


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


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    begins_lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=5),
    chosen=st.lists(st.integers(0, 4), min_size=1, max_size=4),
)
def test_a_rectangle_takes_puts_and_adds_what_plain_loops_do_also_where_requests_share_tokens(begins_lengths, chosen):
    begins, ends = [b for b, _ in begins_lengths], [b + n for b, n in begins_lengths]
    chosen = [r % len(begins) for r in chosen]
    packed = torch.arange(100, 116, dtype=torch.float64)
    rectangle = Rectangle.of(chosen, begins, ends, packed.device)
    cells = rectangle.take(packed)
    assert cells.shape == rectangle.shape == (len(chosen), max(ends[r] - begins[r] for r in chosen))
    expected = packed.clone()
    for n, r in enumerate(chosen):
        assert cells[n, : ends[r] - begins[r]].tolist() == packed[begins[r] : ends[r]].tolist()
        assert cells[n, ends[r] - begins[r] :].tolist() == [float(packed[begins[r]])] * int((~rectangle.valid[n]).sum())
        expected[begins[r] : ends[r]] += cells[n, : ends[r] - begins[r]]
    added = packed.clone()
    rectangle.add(added, cells)
    assert torch.equal(added, expected)
    back = torch.zeros_like(packed)
    rectangle.put(back, cells)
    covered = {position for r in chosen for position in range(begins[r], ends[r])}
    assert back.tolist() == [x if i in covered else 0.0 for i, x in enumerate(packed.tolist())]
    assert rectangle.covers(16) == (
        back.tolist() == packed.tolist() and rectangle.num_cells == 16 and rectangle.is_slice
    )


@given(st.integers(1, 10_000), st.sampled_from([1, 4, 8]))
def test_lengths_of_one_bucket_differ_by_less_than_a_step(length, steps):
    bucket = length_bucket(length, steps_per_octave=steps)
    assert (
        bucket == 0 if length <= 16 else 16 * 2 ** ((bucket - 1) / steps) <= length <= 16 * 2 ** (bucket / steps) + 1e-6
    )
