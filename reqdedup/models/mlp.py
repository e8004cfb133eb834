"""MLPs with BatchNorm1d, on rows and on requests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.ops.expand import expand


def batch_norm_by_rows(
    norm: nn.Module, x_RD: torch.Tensor, row_offsets_R1: torch.Tensor, num_rows: int
) -> torch.Tensor:
    """A BatchNorm of request-level values whose statistics weigh each request by its rows: [R, D] -> [R, D].

    A user tower computed on R requests must equal the same tower computed on B rows. Everything in it acts on one
    request alone and does, except BatchNorm in training: over B rows a request with 40 candidates counts 40 times in
    mean and variance, over R requests once. So the norm sees the rows, and the first row of each request is its result.
    It costs O(B D), little beside the transformer, and holds for any BatchNorm1d, synchronised ones included, outputs,
    gradients and running statistics. In evaluation the norm acts on each request alone and is applied to R directly. A
    request without rows counts in no statistic; its result in training is zero.
    """
    if not norm.training:
        return norm(x_RD)
    y_BD = norm(expand(x_RD, row_offsets_R1, num_rows=num_rows))
    has_rows_R1 = (row_offsets_R1.diff() > 0)[:, None]
    if not num_rows:
        return x_RD * 0 + y_BD.sum()
    first_row_R = row_offsets_R1[:-1].clamp(max=num_rows - 1)
    return torch.where(has_rows_R1, y_BD[first_row_R], 0.0)


class NormedMLP(nn.Module):
    """BatchNorm1d, ReLU, Linear, once per hidden width. It takes the first layer's pre-activation, so that a caller may
    sum that from parts computed on different axes, request features once per request for example."""

    def __init__(self, hidden_widths: Sequence[int], out_width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in hidden_widths)
        outs = [*hidden_widths[1:], out_width]
        self.linears = nn.ModuleList(nn.Linear(width, out) for width, out in zip(hidden_widths, outs, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows: [B, first hidden width] -> [B, out]."""
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = linear(F.relu(norm(x)))
        return x

    def on_requests(self, x_R: torch.Tensor, row_offsets_R1: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Requests, their statistics weighted by rows (`batch_norm_by_rows`): [R, first hidden width] -> [R, out]."""
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x_R = linear(F.relu(batch_norm_by_rows(norm, x_R, row_offsets_R1, num_rows)))
        return x_R
