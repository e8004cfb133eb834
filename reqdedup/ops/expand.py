"""From requests to rows: the only place where axis R becomes axis B."""

from __future__ import annotations

import torch


def expand(x_R: torch.Tensor, row_offsets_R1: torch.Tensor, *, num_rows: int | None = None) -> torch.Tensor:
    """The value of each row's request: [R, ...] -> [B, ...].

    row_offsets_R1: [R + 1] int64; the rows of request r are row_offsets_R1[r] : row_offsets_R1[r + 1].
    num_rows: B, if the caller knows it; spares a GPU the wait for the last offset.
    The gradient of a request is the sum over its rows; a request without rows gets zero.
    """
    if len(x_R) != len(row_offsets_R1) - 1:
        raise ValueError(f"expand: {len(row_offsets_R1) - 1} requests in the offsets, found {len(x_R)} in x_R")
    return torch.repeat_interleave(x_R, row_offsets_R1.diff(), dim=0, output_size=num_rows)


def expand_naive(x_R: torch.Tensor, row_offsets_R1: torch.Tensor) -> torch.Tensor:
    """The definition of `expand`: one copy per row, in a loop."""
    bounds = row_offsets_R1.tolist()
    rows = [x_R[r] for r in range(len(x_R)) for _ in range(bounds[r], bounds[r + 1])]
    return torch.stack(rows) if rows else x_R[:0]
