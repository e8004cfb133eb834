"""Attention to keys and values that lie in several tensors, put together by log-sum-exp: nothing is concatenated.

    out = sum over the parts p of exp(lse_p - lse) out_p,    lse = log(sum of exp(lse_p))

With it a history grows without its past being copied (`append_attention`), and the candidates of many requests read
contexts that are kept apart (`crossing_attention_in_parts`). On a CPU each request has kernel calls of its own, of
shapes that are its own too, so its result has the same bits whoever else is in the batch. Elsewhere the parts are
concatenated. Without gradients: for serving.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from reqdedup.ops.crossing_attention import check_rows, crossing_attention

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of some tokens, [L, H, K] each, of any stride between tokens."""


@torch.no_grad()
def append_attention(
    query_NHK: torch.Tensor,
    key_NHK: torch.Tensor,
    value_NHK: torch.Tensor,
    past_key_PHK: torch.Tensor,
    past_value_PHK: torch.Tensor,
) -> torch.Tensor:
    """Attention of N new tokens to all P past ones, to themselves and to the new ones before them: [N, H, K].

    Scores are scaled by 1 / sqrt(K); P may be 0.
    """
    if query_NHK.device.type != "cpu":
        return append_attention_concatenated(query_NHK, key_NHK, value_NHK, past_key_PHK, past_value_PHK)
    query, key, value = _heads_first(query_NHK), _heads_first(key_NHK), _heads_first(value_NHK)
    out, lse = _flash(query, key, value, 0.0, True)
    if not len(past_key_PHK):
        return out[0].transpose(0, 1)
    past_out, past_lse = _flash(query, _heads_first(past_key_PHK), _heads_first(past_value_PHK))
    outs = torch.stack([past_out[0].transpose(0, 1), out[0].transpose(0, 1)])
    return _merged(outs, torch.stack([past_lse[0].T, lse[0].T]))


@torch.no_grad()
def crossing_attention_in_parts(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    context_parts: Sequence[Sequence[KeyValue]],
    row_offsets_R1: torch.Tensor,
) -> torch.Tensor:
    """`crossing_attention` of requests whose contexts lie anywhere: [B, H, K].

    context_parts: parts of each of the R requests' contexts, in any number, empty ones included.
    Raises ValueError for shapes that do not fit together.
    """
    check_rows(query_BHK, self_key_BHK, self_value_BHK)
    if row_offsets_R1.shape != (len(context_parts) + 1,):
        raise ValueError(
            f"crossing_attention_in_parts: row offsets [R + 1] of {len(context_parts)} contexts required, "
            f"found {tuple(row_offsets_R1.shape)}"
        )
    if query_BHK.device.type != "cpu":
        return crossing_attention_concatenated(query_BHK, self_key_BHK, self_value_BHK, context_parts, row_offsets_R1)
    num_parts, rows = max(map(len, context_parts), default=0), row_offsets_R1.tolist()
    wide = torch.promote_types(query_BHK.dtype, torch.float32)
    out_PBHK = query_BHK.new_zeros(num_parts + 1, *query_BHK.shape)
    lse_PBH = torch.full(out_PBHK.shape[:3], -torch.inf, dtype=wide)
    out_PBHK[num_parts] = self_value_BHK
    lse_PBH[num_parts] = (query_BHK.to(wide) * self_key_BHK.to(wide)).sum(-1) * query_BHK.shape[-1] ** -0.5
    for r, parts in enumerate(context_parts):
        own = slice(rows[r], rows[r + 1])
        for p, (key_LHK, value_LHK) in enumerate(parts):
            if own.start < own.stop and len(key_LHK):
                out, lse = _flash(_heads_first(query_BHK[own]), _heads_first(key_LHK), _heads_first(value_LHK))
                out_PBHK[p, own] = out[0].transpose(0, 1)
                lse_PBH[p, own] = lse[0].T
    return _merged(out_PBHK, lse_PBH)


def _merged(out_PBHK: torch.Tensor, lse_PBH: torch.Tensor) -> torch.Tensor:
    weight_PBH = (lse_PBH - lse_PBH.logsumexp(0)).exp()
    return (out_PBHK.to(lse_PBH.dtype) * weight_PBH[..., None]).sum(0).to(out_PBHK.dtype)


def _heads_first(x_LHK: torch.Tensor) -> torch.Tensor:
    """[1, H, L, K], a view."""
    return x_LHK.transpose(0, 1)[None]


def append_attention_concatenated(
    query_NHK: torch.Tensor,
    key_NHK: torch.Tensor,
    value_NHK: torch.Tensor,
    past_key_PHK: torch.Tensor,
    past_value_PHK: torch.Tensor,
) -> torch.Tensor:
    """`append_attention` on any device."""
    key, value = torch.cat([past_key_PHK, key_NHK]), torch.cat([past_value_PHK, value_NHK])
    token = torch.arange(len(key), device=key.device)
    sees_NT = token <= token[len(past_key_PHK) :, None]
    query, key, value = _heads_first(query_NHK), _heads_first(key), _heads_first(value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=sees_NT)[0].transpose(0, 1)


def crossing_attention_concatenated(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    context_parts: Sequence[Sequence[KeyValue]],
    row_offsets_R1: torch.Tensor,
) -> torch.Tensor:
    """`crossing_attention_in_parts` on any device."""
    none = query_BHK.new_zeros(0, *query_BHK.shape[1:])
    key, value = (torch.cat([none, *(part[i] for parts in context_parts for part in parts)]) for i in (0, 1))
    lengths = [0, *(sum(len(key) for key, _ in parts) for parts in context_parts)]
    offsets_R1 = torch.tensor(lengths, device=query_BHK.device).cumsum(0)
    return crossing_attention(query_BHK, self_key_BHK, self_value_BHK, key, value, offsets_R1, row_offsets_R1)
