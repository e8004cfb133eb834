"""Attention to keys and values that lie in several tensors, put together by log-sum-exp: nothing is concatenated.

    out = (1 - w) out_1 + w out_2,    w = exp(lse_2) / (exp(lse_1) + exp(lse_2))

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
    if not past_key_PHK.shape[0]:
        return out[0].transpose(0, 1)
    past_out, past_lse = _flash(query, _heads_first(past_key_PHK), _heads_first(past_value_PHK))
    return _merged(past_out, past_lse, out, lse)[0].transpose(0, 1)


@torch.no_grad()
def crossing_attention_in_parts(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    contexts: Sequence[KeyValue],
    row_offsets_R1: torch.Tensor,
    *,
    num_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    """`crossing_attention` of requests whose contexts lie anywhere: [B, H, K].

    contexts: keys and values of each of the R requests' contexts, empty ones included.
    num_rows: of each request, the first ones, that are asked for; what becomes of the others means nothing.
    Raises ValueError for shapes that do not fit together.
    """
    check_rows(query_BHK, self_key_BHK, self_value_BHK)
    if row_offsets_R1.shape != (len(contexts) + 1,):
        raise ValueError(
            f"crossing_attention_in_parts: row offsets [R + 1] of {len(contexts)} contexts required, "
            f"found {tuple(row_offsets_R1.shape)}"
        )
    if query_BHK.device.type != "cpu":
        return crossing_attention_concatenated(query_BHK, self_key_BHK, self_value_BHK, contexts, row_offsets_R1)
    rows = row_offsets_R1.tolist()
    wide = torch.promote_types(query_BHK.dtype, torch.float32)
    outs, lses, done = [], [], 0  # of the rows up to `done`
    for r, (key_LHK, value_LHK) in enumerate(contexts):
        begin, end = rows[r], rows[r + 1] if num_rows is None else rows[r] + num_rows[r]
        if begin < end and key_LHK.shape[0]:
            if begin > done:
                outs.append(query_BHK.new_zeros(begin - done, *query_BHK.shape[1:]))
                lses.append(query_BHK.new_full((begin - done, query_BHK.shape[1]), -torch.inf, dtype=wide))
            out, lse = _flash(_heads_first(query_BHK[begin:end]), _heads_first(key_LHK), _heads_first(value_LHK))
            outs.append(out[0].transpose(0, 1))
            lses.append(lse[0].T)
            done = end
    if (left := rows[-1] - done) or not outs:
        outs.append(query_BHK.new_zeros(left, *query_BHK.shape[1:]))
        lses.append(query_BHK.new_full((left, query_BHK.shape[1]), -torch.inf, dtype=wide))
    out_BHK, lse_BH = (x[0] if len(x) == 1 else torch.cat(x) for x in (outs, lses))
    self_lse_BH = (query_BHK.to(wide) * self_key_BHK.to(wide)).sum(-1) * query_BHK.shape[-1] ** -0.5
    return _merged(out_BHK, lse_BH, self_value_BHK, self_lse_BH)


def _merged(one: torch.Tensor, one_lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> torch.Tensor:
    """What is read from both, [..., K], by how much weight each has. lse: log of the sum of its weights, [...]."""
    share_of_other = torch.sigmoid(other_lse - one_lse)[..., None].to(one.dtype)
    return torch.lerp(one, other, share_of_other)


def _heads_first(x_LHK: torch.Tensor) -> torch.Tensor:
    """[1, H, L, K], a view."""
    return x_LHK.transpose(0, 1).unsqueeze(0)


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
    contexts: Sequence[KeyValue],
    row_offsets_R1: torch.Tensor,
) -> torch.Tensor:
    """`crossing_attention_in_parts` on any device."""
    none = query_BHK.new_zeros(0, *query_BHK.shape[1:])
    key, value = (torch.cat([none, *(key_value[i] for key_value in contexts)]) for i in (0, 1))
    offsets_R1 = torch.tensor([0, *(len(key) for key, _ in contexts)], device=query_BHK.device).cumsum(0)
    return crossing_attention(query_BHK, self_key_BHK, self_value_BHK, key, value, offsets_R1, row_offsets_R1)
