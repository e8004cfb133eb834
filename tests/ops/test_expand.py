"""Expanding requests to rows: values and gradients against one copy per row."""

from __future__ import annotations

import pytest
import torch

from reqdedup.ops.expand import expand, expand_naive


@pytest.mark.parametrize("rows_of_request", [[4, 2], [0, 3, 0], [1], [0], [63, 1000, 1]])
@pytest.mark.parametrize("width", [(), (3,), (2, 3)])
def test_expand_copies_each_request_to_its_rows(rows_of_request, width):
    row_offsets_R1 = torch.tensor([0, *rows_of_request]).cumsum(0)
    num_rows = sum(rows_of_request)
    x_R = torch.randn(len(rows_of_request), *width, dtype=torch.float64, requires_grad=True)
    grad_B = torch.randn(num_rows, *width, dtype=torch.float64)

    expected = expand_naive(x_R, row_offsets_R1)
    for found in (expand(x_R, row_offsets_R1), expand(x_R, row_offsets_R1, num_rows=num_rows)):
        assert torch.equal(found, expected)
        (grad,) = torch.autograd.grad(found, x_R, grad_B)
        torch.testing.assert_close(grad, torch.autograd.grad(expected, x_R, grad_B, retain_graph=True)[0])


def test_a_request_without_rows_has_no_gradient():
    x_R = torch.ones(3, 2, requires_grad=True)
    expand(x_R, torch.tensor([0, 2, 2, 3])).sum().backward()
    assert x_R.grad is not None
    assert x_R.grad.tolist() == [[2, 2], [0, 0], [1, 1]]


def test_rows_passed_for_requests_are_refused():
    with pytest.raises(ValueError, match="2 requests in the offsets, found 6"):
        expand(torch.zeros(6, 3), torch.tensor([0, 4, 6]))
