"""Packed [T, ...] tensors to rectangles and back.

Attention kernels want rectangles, requests have histories of any length. Padding all of them to the longest wastes
most of the work (attention costs length^2), one call per request wastes calls. So requests of similar length share a
rectangle: with four steps an octave a rectangle holds at most 1.2 times the tokens that it needs.

Both directions are permutations of rows, apart from padding that nobody reads, so both gradients are gathers;
autograd's own gradient of an index would be a scatter with accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class Rectangle:
    """Requests [N], each with at least one token, whose packed tokens fill a rectangle [N, S] from the left.

    starts, lengths: of the N requests' tokens in the packed axis.
    Padding points at the first token of its own request.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, requests: Sequence[int], begins: Sequence[int], ends: Sequence[int], device: torch.device) -> Rectangle:
        """begins, ends: of every request's tokens in the packed axis."""
        return cls(tuple(begins[r] for r in requests), tuple(ends[r] - begins[r] for r in requests), device)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), max(self.lengths)

    @property
    def num_cells(self) -> int:
        return len(self.lengths) * max(self.lengths)

    @cached_property
    def is_full(self) -> bool:
        """True if no cell is padding."""
        return min(self.lengths) == max(self.lengths)

    @cached_property
    def is_slice(self) -> bool:
        """True if the cells are one slice of the packed axis, in its order."""
        return self.is_full and all(
            start == self.starts[0] + n * self.lengths[0] for n, start in enumerate(self.starts)
        )

    @cached_property
    def valid(self) -> torch.Tensor:
        """True if the cell holds a token, [N, S] bool."""
        length = torch.tensor(self.lengths, device=self.device)
        return torch.arange(self.shape[1], device=self.device) < length[:, None]

    @cached_property
    def token(self) -> torch.Tensor:
        """Position in the packed axis of each cell, [N, S] int64."""
        cell_S = torch.arange(self.shape[1], device=self.device)
        start = torch.tensor(self.starts, device=self.device)[:, None]
        return start + (cell_S if self.is_full else torch.where(self.valid, cell_S, 0))

    def take(self, packed: torch.Tensor) -> torch.Tensor:
        """The cells of a packed tensor [T, ...] as [N, S, ...], a view if they are a slice."""
        if self.is_slice:
            cells = packed[self.starts[0] : self.starts[0] + self.num_cells]
        else:
            cells = packed.index_select(0, self.token.flatten())
        return cells.view(*self.shape, *packed.shape[1:])

    def covers(self, num_tokens: int) -> bool:
        """True if the cells are the whole packed axis, in its order."""
        return self.is_slice and self.starts[0] == 0 and self.num_cells == num_tokens

    def put(self, packed: torch.Tensor, cells: torch.Tensor) -> None:
        """Write cells [N, S, ...] to their places in a packed tensor [T, ...]; padding is dropped."""
        if self.is_slice:
            packed[self.starts[0] : self.starts[0] + self.num_cells] = cells.flatten(0, 1)
        else:
            packed[self.token[self.valid]] = cells[self.valid]

    def add(self, packed: torch.Tensor, cells: torch.Tensor) -> None:
        """Add cells [N, S, ...] at their places in a packed tensor [T, ...], which requests may share."""
        if self.is_slice:
            packed[self.starts[0] : self.starts[0] + self.num_cells] += cells.flatten(0, 1)
        else:
            packed.index_add_(0, self.token[self.valid], cells[self.valid])


def length_bucket(length: int, *, steps_per_octave: int, smallest: int = 16) -> int:
    """The bucket of a length: lengths up to `smallest` share one, then `steps_per_octave` buckets per doubling."""
    return 0 if length <= smallest else 1 + math.floor(steps_per_octave * math.log2(length / smallest) - 1e-9)


@dataclass(frozen=True)
class Padding:
    """How T packed tokens lie in rectangles, which follow one another on an axis of cells.

    token_of_cell: [cells] position in the packed axis.  cell_of_token: [T] the cell that holds each token.
    Both are None if cells and tokens are the same: all histories of one length.
    """

    rectangles: tuple[Rectangle, ...]
    token_of_cell: torch.Tensor | None
    cell_of_token: torch.Tensor | None

    @classmethod
    def of(cls, offsets_G1: torch.Tensor, *, steps_per_octave: int = 4) -> Padding:
        """offsets_G1: [G + 1]. Reads the offsets on the CPU: on a GPU that waits once for them, so share the result."""
        offsets, device = offsets_G1.tolist(), offsets_G1.device
        buckets: dict[int, list[int]] = {}
        for r in range(len(offsets) - 1):
            length = offsets[r + 1] - offsets[r]
            if length:
                buckets.setdefault(length_bucket(length, steps_per_octave=steps_per_octave), []).append(r)
        rectangles = tuple(
            Rectangle.of(requests, offsets, offsets[1:], device) for _, requests in sorted(buckets.items())
        )
        if not rectangles or (len(rectangles) == 1 and rectangles[0].is_slice):
            return cls(rectangles, None, None)
        cell_of_token = torch.empty(offsets[-1], dtype=torch.int64, device=device)
        start = 0
        for rectangle in rectangles:
            cell = torch.arange(start, start + rectangle.num_cells, device=device)
            rectangle.put(cell_of_token, cell.view(rectangle.shape))
            start += rectangle.num_cells
        return cls(rectangles, torch.cat([x.token.flatten() for x in rectangles]), cell_of_token)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, 0 if there are none."""
        return max((rectangle.shape[1] for rectangle in self.rectangles), default=0)

    def pad(self, x_T: torch.Tensor) -> list[torch.Tensor]:
        """The rectangles [N, S, ...] of packed tokens [T, ...]. Padding must get no gradient: what
        it gets is dropped."""
        cells = x_T
        if self.token_of_cell is not None:
            cells = _Pad.apply(x_T, self.token_of_cell, self.cell_of_token)
        # one rectangle is not split: the gradient of a split is a copy
        sizes = [rectangle.num_cells for rectangle in self.rectangles]
        parts = (cells,) if len(sizes) == 1 else cells.split(sizes)
        return [
            part.view(*rectangle.shape, *x_T.shape[1:]) for part, rectangle in zip(parts, self.rectangles, strict=True)
        ]

    def pack(self, rectangles: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rectangles [N, S, ...] back to packed tokens [T, ...]; what padding holds is dropped."""
        flat = [rectangle.flatten(0, 1) for rectangle in rectangles]
        cells = flat[0] if len(flat) == 1 else torch.cat(flat)
        return cells if self.cell_of_token is None else _Pack.apply(cells, self.cell_of_token)


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
