"""HSTU's attention: every key is weighed by itself, nothing is divided by a sum over keys.

    out_i = sum over j <= i of silu(q_i k_j + bias[bucket(i - j)]) v_j

Weights do not add up to one, so how much of a kind happened is not lost; a norm over the heads follows in the layer.
A key's weight asks for no other key: parts of a history are simply added up, and keys and values that are kept are
exact as they are. Candidates stand right behind their request's history and read it and themselves, never each other.

All of it is plain torch, two matrix products a history or request, on any device, with the weights [H, S, S] of each
history in memory: for histories of some thousands of events, beyond which it would want a kernel of its own.
`history_naive` and `crossing_naive` are the definition, loops over the tokens and the rows.
Source: Zhai et al. 2024, Actions speak louder than words (arXiv 2402.17152), section 3.2, formula 2; its bias of times
is left out, and the one of positions is a table of distances.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from reqdedup.ops.attention_in_parts import KeyValue
from reqdedup.ops.crossing_attention import check_rows, check_shapes
from reqdedup.ops.prefixes import Prefixes
from reqdedup.ops.ragged import Padding

_FIRST_OF_BUCKET = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
NUM_BUCKETS = len(_FIRST_OF_BUCKET) + 1
"""Of distances between tokens: 0, 1, 2, 3, 4 to 5, 6 to 7, ..., and from 8,192 on."""


def bucket_of(distance: torch.Tensor) -> torch.Tensor:
    """The bucket of distances [events], at least 0, any shape."""
    return torch.bucketize(distance, torch.tensor(_FIRST_OF_BUCKET, device=distance.device), right=True)


@dataclass(frozen=True)
class Pointwise:
    """`Attention` with a bias for each head and bucket of distances: bias_HM, M = NUM_BUCKETS."""

    bias_HM: torch.Tensor

    def history(
        self,
        query_THK: torch.Tensor,
        key_THK: torch.Tensor,
        value_THK: torch.Tensor,
        history_offsets_G1: torch.Tensor,
        *,
        padding: Padding | None = None,
        is_causal: bool = True,
    ) -> torch.Tensor:
        """As `history_attention`. Raises ValueError unless it is causal."""
        if not is_causal:
            raise ValueError("pointwise attention: causal attention required, found bidirectional")
        padding = Padding.of(history_offsets_G1) if padding is None else padding
        if not padding.rectangles:  # every input keeps a gradient, as DDP wants
            return query_THK + key_THK + value_THK + 0 * self.bias_HM.sum()
        read = []
        for query, key, value in zip(*(padding.pad(x) for x in (query_THK, key_THK, value_THK)), strict=True):
            read.append(self._causal(query, key, value))
        return padding.pack(read)

    def crossing(
        self,
        query_BHK: torch.Tensor,
        self_key_BHK: torch.Tensor,
        self_value_BHK: torch.Tensor,
        key_THK: torch.Tensor,
        value_THK: torch.Tensor,
        context_offsets_G1: torch.Tensor,
        row_offsets_R1: torch.Tensor,
        *,
        prefixes: Prefixes | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """As `crossing_attention`, whose options have no use here."""
        check_shapes(
            *(query_BHK, self_key_BHK, self_value_BHK, key_THK, value_THK, context_offsets_G1, row_offsets_R1, prefixes)
        )
        lengths = context_offsets_G1.diff().tolist()
        kept: list[KeyValue] = list(zip(key_THK.split(lengths), value_THK.split(lengths), strict=True))
        if prefixes is not None:
            fan_out_G = prefixes.request_offsets_G1.diff().tolist()
            of_request = [context for context, count in zip(kept, fan_out_G, strict=True) for _ in range(count)]
            seen = prefixes.prefix_length_R.tolist()
            kept = [(key[:length], value[:length]) for (key, value), length in zip(of_request, seen, strict=True)]
        read_BHK = self._rows(query_BHK, self_key_BHK, self_value_BHK, kept, row_offsets_R1.tolist())
        return read_BHK + 0 * (key_THK.sum() + value_THK.sum() + self.bias_HM.sum())

    @torch.no_grad()
    def append(
        self,
        query_NHK: torch.Tensor,
        key_NHK: torch.Tensor,
        value_NHK: torch.Tensor,
        past_key_PHK: torch.Tensor,
        past_value_PHK: torch.Tensor,
    ) -> torch.Tensor:
        """As `append_attention`."""
        read_NHK = self._causal(query_NHK[None], key_NHK[None], value_NHK[None])[0]
        num_past = past_key_PHK.shape[0]
        if not num_past:
            return read_NHK
        distance_NP = torch.arange(num_past, num_past + len(query_NHK), device=query_NHK.device)[:, None]
        distance_NP = distance_NP - torch.arange(num_past, device=query_NHK.device)
        return read_NHK + _read(query_NHK, past_key_PHK, past_value_PHK, self.bias_HM[:, bucket_of(distance_NP)])

    @torch.no_grad()
    def in_parts(
        self,
        query_BHK: torch.Tensor,
        self_key_BHK: torch.Tensor,
        self_value_BHK: torch.Tensor,
        contexts: Sequence[KeyValue],
        row_offsets_R1: torch.Tensor,
        *,
        num_rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """As `crossing_attention_in_parts`."""
        check_rows(query_BHK, self_key_BHK, self_value_BHK)
        if row_offsets_R1.shape != (len(contexts) + 1,):
            raise ValueError(
                f"in_parts: row offsets [R + 1] of {len(contexts)} contexts required, found "
                f"{tuple(row_offsets_R1.shape)}"
            )
        return self._rows(query_BHK, self_key_BHK, self_value_BHK, contexts, row_offsets_R1.tolist(), num_rows)

    def _rows(
        self,
        query_BHK: torch.Tensor,
        self_key_BHK: torch.Tensor,
        self_value_BHK: torch.Tensor,
        contexts: Sequence[KeyValue],
        rows: Sequence[int],
        num_rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Rows of one request after the other, and all rows' own term at once."""
        parts = [query_BHK[:0]]
        for (key_LHK, value_LHK), (begin, end), r in zip(contexts, itertools.pairwise(rows), itertools.count()):
            asked = end if num_rows is None else begin + num_rows[r]
            query = query_BHK[begin:asked]
            if key_LHK.shape[0] and begin < asked:
                distance_1L = torch.arange(key_LHK.shape[0], 0, -1, device=query.device)[None]
                parts.append(_read(query, key_LHK, value_LHK, self.bias_HM[:, bucket_of(distance_1L)]))
                begin = asked
            parts.append(query_BHK.new_zeros(end - begin, *query_BHK.shape[1:]))
        own_BH = F.silu((query_BHK * self_key_BHK).sum(-1) + self.bias_HM[:, 0].to(query_BHK.dtype))
        return torch.cat(parts) + own_BH[..., None] * self_value_BHK

    def _causal(self, query_NSHK: torch.Tensor, key_NSHK: torch.Tensor, value_NSHK: torch.Tensor) -> torch.Tensor:
        """Every token of rectangles of histories, whose padding stands on the right: [N, S, H, K]."""
        token_S = torch.arange(query_NSHK.shape[1], device=query_NSHK.device)
        distance_SS = token_S[:, None] - token_S
        bias_HSS = self.bias_HM[:, bucket_of(distance_SS.clamp(min=0))]
        return _read(query_NSHK, key_NSHK, value_NSHK, bias_HSS, sees=distance_SS >= 0)


def _read(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, sees: torch.Tensor | None = None
) -> torch.Tensor:
    """[..., Q, H, K] from keys [..., L, H, K]. bias: [H, Q, L] or what broadcasts to it.  sees: [Q, L] bool."""
    query, key, value = query.transpose(-3, -2), key.transpose(-3, -2), value.transpose(-3, -2)
    weight = F.silu(query @ key.mT + bias.to(query.dtype))
    if sees is not None:
        weight = weight * sees
    return (weight @ value).transpose(-3, -2)


def history_naive(
    query_THK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    history_offsets_G1: torch.Tensor,
    bias_HM: torch.Tensor,
) -> torch.Tensor:
    """The definition of `Pointwise.history`: a loop over pairs of tokens."""
    read = []
    for start, end in itertools.pairwise(history_offsets_G1.tolist()):
        for i in range(start, end):
            total_HK = 0 * value_THK[i]
            for j in range(start, i + 1):
                score_H = (query_THK[i] * key_THK[j]).sum(1) + bias_HM[:, _bucket(i - j)]
                total_HK = total_HK + (score_H / (1 + (-score_H).exp()))[:, None] * value_THK[j]
            read.append(total_HK)
    return torch.stack(read) if read else value_THK


def crossing_naive(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    contexts: Sequence[KeyValue],
    row_offsets_R1: torch.Tensor,
    bias_HM: torch.Tensor,
) -> torch.Tensor:
    """The definition of `Pointwise.crossing`: a loop over the rows and what each sees, the nearest first."""
    read = []
    for (key_LHK, value_LHK), (begin, end) in zip(contexts, itertools.pairwise(row_offsets_R1.tolist()), strict=True):
        for b in range(begin, end):
            seen = [(self_key_BHK[b], self_value_BHK[b]), *reversed(list(zip(key_LHK, value_LHK, strict=True)))]
            total_HK = 0 * self_value_BHK[b]
            for distance, (key_HK, value_HK) in enumerate(seen):
                score_H = (query_BHK[b] * key_HK).sum(1) + bias_HM[:, _bucket(distance)]
                total_HK = total_HK + (score_H / (1 + (-score_H).exp()))[:, None] * value_HK
            read.append(total_HK)
    return torch.stack(read) if read else query_BHK


def _bucket(distance: int) -> int:
    return sum(first <= distance for first in _FIRST_OF_BUCKET)
