"""Self-attention over packed histories, causal or not: the context pass, once per request."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from reqdedup.ops.ragged import Padding


def history_attention(
    query_THK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    history_offsets_G1: torch.Tensor,
    *,
    padding: Padding | None = None,
    is_causal: bool = True,
) -> torch.Tensor:
    """Attention of every token to itself and to the earlier tokens of its own history: [T, H, K].

    is_causal: False lets it see the later ones too.
    history_offsets_G1: [G + 1] int64, of the G histories, which may be empty. Scores are scaled by 1 / sqrt(K).
    padding: `Padding.of(history_offsets_G1)`, if the caller has it: several layers share one.
    Histories of similar length are padded into one call on the right, where a causal mask hides the padding by itself.
    """
    if padding is None:
        padding = Padding.of(history_offsets_G1)
    if not padding.rectangles:  # no tokens: nothing to compute, but every input keeps a gradient, as DDP wants
        return query_THK + key_THK + value_THK
    attended = []
    padded = (padding.pad(x) for x in (query_THK, key_THK, value_THK))
    for rectangle, query, key, value in zip(padding.rectangles, *padded, strict=True):
        sees = None if is_causal or rectangle.is_full else rectangle.valid[:, None, None, :]
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=sees, is_causal=is_causal
        )
        attended.append(out.transpose(1, 2))
    return padding.pack(attended)


def history_attention_naive(
    query_THK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    history_offsets_G1: torch.Tensor,
    *,
    is_causal: bool = True,
) -> torch.Tensor:
    """The definition of `history_attention`: a loop over the tokens."""
    attended = []
    bounds = history_offsets_G1.tolist()
    for start, end in itertools.pairwise(bounds):
        for token in range(start, end):
            seen = slice(start, token + 1 if is_causal else end)
            score_HL = torch.einsum("hk,lhk->hl", query_THK[token], key_THK[seen])
            weight_HL = torch.softmax(score_HL * query_THK.shape[-1] ** -0.5, dim=-1)
            attended.append(torch.einsum("hl,lhk->hk", weight_HL, value_THK[seen]))
    return torch.stack(attended) if attended else value_THK
