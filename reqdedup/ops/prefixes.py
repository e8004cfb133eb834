"""Several requests of one user reading one context, each its own prefix of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Prefixes:
    """Which of G contexts each of R requests reads, and how many of its tokens.

        context 0: [a b c d e]    requests 0, 1    see [a b c], [a b c d e]     request_offsets_G1 = [0, 2, 3]
        context 1: [f g]          request 2        sees [f g]                   prefix_length_R    = [3, 5, 2]

    The requests of a context stand next to each other, in any order; a prefix may be empty.
    request_offsets_G1: [G + 1] int64, rising from 0 to R.  prefix_length_R: [R] int64.
    """

    request_offsets_G1: torch.Tensor
    prefix_length_R: torch.Tensor

    @property
    def num_requests(self) -> int:
        return len(self.prefix_length_R)

    def begin(self, context_offsets_G1: torch.Tensor) -> torch.Tensor:
        """Where each request's prefix begins in the packed contexts: [R]."""
        fan_out_G = self.request_offsets_G1.diff()
        return torch.repeat_interleave(context_offsets_G1[:-1], fan_out_G, output_size=self.num_requests)

    def row_offsets(self, row_offsets_R1: torch.Tensor) -> torch.Tensor:
        """The rows of each context, [G + 1]."""
        return row_offsets_R1[self.request_offsets_G1]


def ranges(context_offsets_G1: torch.Tensor, prefixes: Prefixes | None) -> tuple[list[int], list[int]]:
    """First and end of the packed tokens that each request sees, on the CPU.

    context_offsets_G1: of the G contexts that the requests share, or without `prefixes` of their own, so that G = R.
    """
    if prefixes is None:
        bounds = context_offsets_G1.tolist()
        return bounds[:-1], bounds[1:]
    begin_R = prefixes.begin(context_offsets_G1)
    return begin_R.tolist(), (begin_R + prefixes.prefix_length_R).tolist()
