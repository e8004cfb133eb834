"""Causal self-attention over packed histories: the context pass, once per request."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from reqdedup.ops.ragged import Padding


def causal_attention(
    query_THK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    history_offsets_R1: torch.Tensor,
    *,
    padding: Padding | None = None,
) -> torch.Tensor:
    """Attention of every history token to itself and to the earlier tokens of its own request: [T, H, K].

    history_offsets_R1: [R + 1] int64, histories may be empty. Scores are scaled by 1 / sqrt(K).
    padding: `Padding.of(history_offsets_R1)`, where the caller has it: several layers share one.
    Requests of similar length are padded into one call on the right, where a causal mask hides the padding.
    """
    if padding is None:
        padding = Padding.of(history_offsets_R1)
    if not padding.rectangles:  # no tokens: nothing to compute, but every input keeps a gradient, as DDP wants
        return query_THK + key_THK + value_THK
    rectangles = [
        F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
        ).transpose(1, 2)
        for query, key, value in zip(padding.pad(query_THK), padding.pad(key_THK), padding.pad(value_THK), strict=True)
    ]
    return padding.pack(rectangles)


def causal_attention_naive(
    query_THK: torch.Tensor, key_THK: torch.Tensor, value_THK: torch.Tensor, history_offsets_R1: torch.Tensor
) -> torch.Tensor:
    """The definition of `causal_attention`: a loop over the tokens."""
    attended = []
    bounds = history_offsets_R1.tolist()
    for start, end in itertools.pairwise(bounds):
        for token in range(start, end):
            score_HL = torch.einsum("hk,lhk->hl", query_THK[token], key_THK[start : token + 1])
            weight_HL = torch.softmax(score_HL * query_THK.shape[-1] ** -0.5, dim=-1)
            attended.append(torch.einsum("hl,lhk->hk", weight_HL, value_THK[start : token + 1]))
    return torch.stack(attended) if attended else value_THK
