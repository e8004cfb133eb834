"""Crossing attention on a CPU: torch's flash kernel over the shared context, the self term merged by log-sum-exp.

Flash returns the attention over the context and its log-sum-exp. With s = q k / sqrt(K) of the self term,

    lse = log(exp(lse_context) + exp(s)),  out = exp(lse_context - lse) out_context + exp(s - lse) v

and the gradient is exact: flash's own backward needs only the final output and log-sum-exp, since it recomputes the
probabilities as exp(score - lse) and the row term as sum(grad * out). The candidates of a request are one block of
queries, so its keys and values are read once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from reqdedup.ops.prefixes import Prefixes, ranges
from reqdedup.ops.ragged import Rectangle, length_bucket

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

PADDED_CONTEXT_AT_MOST = 256
"""Context length up to which requests of different length share one masked call: above it a call of its own costs
less than the padding."""


@dataclass(frozen=True)
class _Call:
    """One call of the kernel: some requests, their rows and their context."""

    row: Rectangle
    token: Rectangle

    def context_mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """[N, 1, 1, S]: minus infinity on padded keys; None if there are none."""
        if self.token.is_full:
            return None
        mask = torch.zeros(self.token.shape, dtype=dtype)
        return mask.masked_fill_(~self.token.valid, -torch.inf)[:, None, None, :]


def _calls(begins: list[int], ends: list[int], rows: list[int], padded_context_at_most: int) -> list[_Call]:
    """The calls that together cover every request that has both a history and rows."""
    device = torch.device("cpu")
    buckets: dict[tuple[bool, int, int], list[int]] = {}
    for r in range(len(rows) - 1):
        length, count = ends[r] - begins[r], rows[r + 1] - rows[r]
        if length and count:
            shared = length <= padded_context_at_most
            length_key = length_bucket(length, steps_per_octave=2) if shared else length
            buckets.setdefault((shared, length_key, length_bucket(count, steps_per_octave=2)), []).append(r)
    return [
        _Call(Rectangle.of(requests, rows, rows[1:], device), Rectangle.of(requests, begins, ends, device))
        for _, requests in sorted(buckets.items())
    ]


def _heads_first(x: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
    """[N, H, S, ...] of packed [T, H, ...]."""
    return rectangle.take(x).transpose(1, 2)


class _Packed:
    """A packed tensor that the calls fill, cell by cell; if one call covers all of it, its result is the tensor."""

    def __init__(self, like: torch.Tensor, fill: float = 0.0) -> None:
        self._like, self._fill = like, fill
        self._tensor: torch.Tensor | None = None

    @property
    def tensor(self) -> torch.Tensor:
        if self._tensor is None:
            self._tensor = torch.full_like(self._like, self._fill)
        return self._tensor

    def write(self, rectangle: Rectangle, heads_first: torch.Tensor, *, add: bool = False) -> None:
        """The cells [N, H, S, ...] of one call; add: to what other calls wrote to the same places."""
        cells = heads_first.transpose(1, 2)
        if self._tensor is None and rectangle.covers(len(self._like)):
            self._tensor = cells.flatten(0, 1)
        elif add:
            rectangle.add(self.tensor, cells)
        else:
            rectangle.put(self.tensor, cells)


class _CrossingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        self_key: torch.Tensor,
        self_value: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context_offsets_G1: torch.Tensor,
        row_offsets_R1: torch.Tensor,
        prefixes: Prefixes | None,
        padded_context_at_most: int,
    ) -> torch.Tensor:
        calls = _calls(*ranges(context_offsets_G1, prefixes), row_offsets_R1.tolist(), padded_context_at_most)
        wide = torch.promote_types(query.dtype, torch.float32)
        scale = query.shape[-1] ** -0.5
        self_score_BH = (query.to(wide) * self_key.to(wide)).sum(-1) * scale
        packed_out, packed_lse = _Packed(query), _Packed(self_score_BH, -torch.inf)
        for call in calls:
            out, lse = _flash(
                _heads_first(query, call.row),
                _heads_first(key, call.token),
                _heads_first(value, call.token),
                attn_mask=call.context_mask(query.dtype),
            )
            packed_out.write(call.row, out)
            packed_lse.write(call.row, lse)
        context_lse_BH = packed_lse.tensor
        lse_BH = torch.logaddexp(context_lse_BH, self_score_BH)
        out_BHK = packed_out.tensor.to(wide) * (context_lse_BH - lse_BH).exp()[..., None]
        out_BHK += self_value.to(wide) * (self_score_BH - lse_BH).exp()[..., None]
        out_BHK = out_BHK.to(query.dtype)
        ctx.calls, ctx.scale, ctx.is_shared = calls, scale, prefixes is not None
        ctx.save_for_backward(query, self_key, self_value, key, value, out_BHK, self_score_BH, lse_BH)
        return out_BHK

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, self_key, self_value, key, value, out, self_score_BH, lse_BH = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        wide = self_score_BH.dtype
        self_weight_BH1 = (self_score_BH - lse_BH).exp()[..., None]
        grad_wide = grad_out.to(wide)
        row_term_BH1 = (grad_wide * out.to(wide)).sum(-1, keepdim=True)
        self_grad_BH1 = (grad_wide * self_value.to(wide)).sum(-1, keepdim=True) - row_term_BH1
        self_grad_BH1 = self_grad_BH1 * self_weight_BH1 * ctx.scale

        packed_query, packed_key, packed_value = _Packed(query), _Packed(key), _Packed(value)
        for call in ctx.calls:
            # padded rows repeat a real row with a zero gradient, so they add nothing to the keys and values
            grad_rectangle = _heads_first(grad_out, call.row)
            if not call.row.is_full:
                grad_rectangle = grad_rectangle * call.row.valid[:, None, :, None]
            grad_q, grad_k, grad_v = _flash_backward(
                grad_rectangle,
                _heads_first(query, call.row),
                _heads_first(key, call.token),
                _heads_first(value, call.token),
                _heads_first(out, call.row),
                _heads_first(lse_BH, call.row).contiguous(),
                0.0,
                False,
                attn_mask=call.context_mask(query.dtype),
            )
            packed_query.write(call.row, grad_q)
            packed_key.write(call.token, grad_k, add=ctx.is_shared)
            packed_value.write(call.token, grad_v, add=ctx.is_shared)
        grad_query = (packed_query.tensor.to(wide) + self_grad_BH1 * self_key.to(wide)).to(query.dtype)
        grad_self_key = (self_grad_BH1 * query.to(wide)).to(query.dtype)
        grad_self_value = (self_weight_BH1 * grad_wide).to(query.dtype)
        grad_rows = (grad_query, grad_self_key, grad_self_value)
        return *grad_rows, packed_key.tensor, packed_value.tensor, None, None, None, None


def crossing_attention_flash(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    context_offsets_G1: torch.Tensor,
    row_offsets_R1: torch.Tensor,
    prefixes: Prefixes | None = None,
    *,
    padded_context_at_most: int = PADDED_CONTEXT_AT_MOST,
) -> torch.Tensor:
    """`crossing_attention` on CPU tensors; see the module. Raises ValueError for tensors elsewhere."""
    if query_BHK.device.type != "cpu":
        raise ValueError(f"backend 'flash' needs CPU tensors, found {query_BHK.device}; use sdpa there")
    tensors = (query_BHK, self_key_BHK, self_value_BHK, key_THK, value_THK, context_offsets_G1, row_offsets_R1)
    return _CrossingAttention.apply(*tensors, prefixes, padded_context_at_most)
