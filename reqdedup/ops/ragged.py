"""Packed [T, ...] tensors to padded groups and back.

Attention kernels want rectangles, requests have histories of any length. Padding all of them to the longest wastes
most of the work (attention costs length^2), one call per request wastes calls. So requests of similar length share a
rectangle: with four steps an octave a rectangle holds at most 1.2 times the tokens that it needs.

Both directions are permutations of rows, apart from padding that nobody reads, so both gradients are gathers; autograd's
own gradient of an index would be a scatter with accumulation, which is serial on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class PaddedGroup:
    """Requests [N] whose packed tokens fill a rectangle [N, S]; padding points at the request's own first token.

    requests: the N requests.  lengths: tokens of each, all at least 1.
    token_NS: position in the packed axis of each cell.
    """

    requests: tuple[int, ...]
    lengths: tuple[int, ...]
    token_NS: torch.Tensor

    @property
    def is_full(self) -> bool:
        """True where no cell is padding."""
        return min(self.lengths) == self.token_NS.shape[1]

    def valid(self) -> torch.Tensor:
        """True where the cell holds a token, [N, S] bool."""
        length = torch.tensor(self.lengths, device=self.token_NS.device)
        return torch.arange(self.token_NS.shape[1], device=self.token_NS.device) < length[:, None]


def length_bucket(length: int, *, steps_per_octave: int, smallest: int = 16) -> int:
    """The bucket of a length: lengths up to `smallest` share one, then `steps_per_octave` buckets per doubling."""
    return 0 if length <= smallest else 1 + math.floor(steps_per_octave * math.log2(length / smallest) - 1e-9)


def pad_tokens(requests: Sequence[int], offsets: Sequence[int], device: torch.device) -> PaddedGroup:
    """One rectangle of these requests, none of them empty."""
    start = torch.tensor([offsets[r] for r in requests], device=device)
    lengths = tuple(offsets[r + 1] - offsets[r] for r in requests)
    cell_S = torch.arange(max(lengths), device=device)
    length = torch.tensor(lengths, device=device)[:, None]
    return PaddedGroup(tuple(requests), lengths, start[:, None] + torch.where(cell_S < length, cell_S, 0))


def group_by_length(offsets: Sequence[int], device: torch.device, *, steps_per_octave: int = 4) -> list[PaddedGroup]:
    """Rectangles that together hold every token once; requests without tokens are in none of them."""
    buckets: dict[int, list[int]] = {}
    for r in range(len(offsets) - 1):
        length = offsets[r + 1] - offsets[r]
        if length:
            buckets.setdefault(length_bucket(length, steps_per_octave=steps_per_octave), []).append(r)
    return [pad_tokens(requests, offsets, device) for _, requests in sorted(buckets.items())]


class _Pad(torch.autograd.Function):
    """x[token_of_cell]; the gradient of a token is that of its own cell, padding has none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, token_of_cell: torch.Tensor, cell_of_token: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cell_of_token)
        return x.index_select(0, token_of_cell)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (cell_of_token,) = ctx.saved_tensors
        return grads[0].index_select(0, cell_of_token), None, None


class _Pack(torch.autograd.Function):
    """cells[cell_of_token]; the gradient of padding is zero."""

    @staticmethod
    def forward(ctx: Any, cells: torch.Tensor, cell_of_token: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cell_of_token)
        ctx.num_cells = len(cells)
        return cells.index_select(0, cell_of_token)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (cell_of_token,) = ctx.saved_tensors
        cells = grads[0].new_zeros(ctx.num_cells, *grads[0].shape[1:])
        cells[cell_of_token] = grads[0]  # distinct cells: a copy, nothing accumulates
        return cells, None


@dataclass(frozen=True)
class Padding:
    """How T packed tokens lie in the rectangles of `groups`, laid one after the other as `cells`.

    token_of_cell: [cells] position in the packed axis; padding points at some token of the same request.
    cell_of_token: [T] the cell that holds each token.
    """

    groups: tuple[PaddedGroup, ...]
    token_of_cell: torch.Tensor
    cell_of_token: torch.Tensor
    is_identity: bool

    @classmethod
    def of(cls, offsets_R1: torch.Tensor, *, steps_per_octave: int = 4) -> Padding:
        """offsets_R1: [R + 1]. Reads the offsets on the CPU: on a GPU that waits once for them, so share the result."""
        offsets = offsets_R1.tolist()
        device = offsets_R1.device
        groups = group_by_length(offsets, device, steps_per_octave=steps_per_octave)
        token_of_cell = torch.cat([group.token_NS.flatten() for group in groups] or [offsets_R1.new_empty(0)])
        is_identity = len(token_of_cell) == offsets[-1] and len(groups) <= 1
        cell_of_token = torch.zeros(offsets[-1], dtype=torch.int64, device=device)
        start = 0
        for group in groups:
            cell_NS = start + torch.arange(group.token_NS.numel(), device=device).view(group.token_NS.shape)
            if group.is_full:
                cell_of_token[group.token_NS] = cell_NS
            else:
                valid_NS = group.valid()
                cell_of_token[group.token_NS[valid_NS]] = cell_NS[valid_NS]
            start += group.token_NS.numel()
        return cls(tuple(groups), token_of_cell, cell_of_token, is_identity)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, 0 where there are none."""
        return max((max(group.lengths) for group in self.groups), default=0)

    def pad(self, x_THK: torch.Tensor) -> list[torch.Tensor]:
        """The rectangles [N, S, H, K], one per group. The gradient of padding must be zero: it is dropped."""
        cells = x_THK if self.is_identity else _Pad.apply(x_THK, self.token_of_cell, self.cell_of_token)
        sizes = [group.token_NS.numel() for group in self.groups]
        return [
            cell.view(*group.token_NS.shape, *x_THK.shape[1:])
            for cell, group in zip(cells.split(sizes), self.groups, strict=True)
        ]

    def pack(self, rectangles: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rectangles [N, S, H, K], one per group, back to [T, H, K]; what padding holds is dropped."""
        cells = torch.cat([rectangle.flatten(0, 1) for rectangle in rectangles])
        return cells if self.is_identity else _Pack.apply(cells, self.cell_of_token)
