"""Which histories a model's transformer passes over: one per request, or one per group of requests
that can share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.config import ModelConfig
from reqdedup.ops.prefixes import Prefixes
from reqdedup.ops.ragged import Padding


@dataclass(frozen=True)
class Histories:
    """Packed histories and who reads them.

    tokens: sequence columns, [T] each.  offsets_G1: [G + 1] of the histories.
    prefixes: which requests read which history, and how much of it; None if each of the R requests has its own.
    """

    tokens: dict[str, torch.Tensor]
    offsets_G1: torch.Tensor
    prefixes: Prefixes | None

    @classmethod
    def of(cls, batch: RequestBatch, config: ModelConfig) -> Histories:
        """Raises ValueError if config.share_context needs columns that the batch does not have."""
        if config.share_context == "user":
            groups = batch.context_groups()
            if groups.is_shared:
                return cls(*groups.history(batch), groups.prefixes)
        return cls(batch.history, batch.history_offsets_R1, None)


def last_of_history(x_TD: torch.Tensor, offsets_G1: torch.Tensor, prefixes: Prefixes | None = None) -> torch.Tensor:
    """The last token that each request sees, zero if it sees none: [T, D] -> [R, D]."""
    length_R = offsets_G1.diff() if prefixes is None else prefixes.prefix_length_R
    end_R = (offsets_G1[:-1] if prefixes is None else prefixes.begin(offsets_G1)) + length_R
    if not len(x_TD):
        return x_TD.sum() * 0 + x_TD.new_zeros(len(length_R), x_TD.shape[1])
    return torch.where((length_R > 0)[:, None], x_TD[(end_R - 1).clamp(min=0)], 0.0)


def mean_over_history(x_TD: torch.Tensor, offsets_G1: torch.Tensor, prefixes: Prefixes | None = None) -> torch.Tensor:
    """The mean token that each request sees, zero if it sees none: [T, D] -> [R, D]."""
    if prefixes is None:
        length_R = offsets_G1.diff()
        request_of_token_T = torch.repeat_interleave(length_R, output_size=len(x_TD))
        sum_RD = x_TD.new_zeros(len(length_R), x_TD.shape[1]).index_add(0, request_of_token_T, x_TD)
        return sum_RD / length_R.clamp(min=1)[:, None]
    # Ordered by where their prefixes end, the requests of a history cut it into pieces: sum each piece once, then add
    # up.
    length_R = prefixes.prefix_length_R
    end_R, by_end = (prefixes.begin(offsets_G1) + length_R).sort(stable=True)
    first = torch.zeros_like(end_R)
    first[1:] = end_R[:-1]
    first = torch.maximum(first, prefixes.begin(offsets_G1))
    piece_length_R = end_R - first
    piece_of_token_T = torch.repeat_interleave(piece_length_R, output_size=len(x_TD))
    piece_RD = x_TD.new_zeros(len(length_R), x_TD.shape[1]).index_add(0, piece_of_token_T, x_TD)
    padding = Padding.of(prefixes.request_offsets_G1)
    summed_RD = padding.pack([pieces.cumsum(1) for pieces in padding.pad(piece_RD)])
    sum_RD = torch.empty_like(summed_RD).index_copy(0, by_end, summed_RD)
    return sum_RD / length_R.clamp(min=1)[:, None]
