"""Twins with equal parameters, and their comparison."""

from __future__ import annotations

import torch
from torch import nn

TOLERANCE = 1e-10


def twins(ours: nn.Module, duplicated: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both with the same parameters, all of them far from their initial values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    duplicated.load_state_dict(ours.state_dict())
    return ours, duplicated


def assert_same(ours: nn.Module, duplicated: nn.Module) -> None:
    for (name, a), (_, b) in zip(ours.named_parameters(), duplicated.named_parameters(), strict=True):
        assert a.grad is not None, f"{name} has no gradient"
        torch.testing.assert_close(a.grad, b.grad, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    for (name, a), (_, b) in zip(ours.named_buffers(), duplicated.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
