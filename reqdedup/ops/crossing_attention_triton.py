"""Crossing attention on a GPU: Triton kernels that read each request's keys and values once per tile of its candidates.

A program owns one tile of candidates of one request and one head, and walks the request's context once. The online
softmax starts from the self term (m = s, l = 1, acc = v), so it never holds minus infinity and an empty history needs
no care. The backward is two kernels: one over tiles of candidates (query and self gradients), one over tiles of
context, which walks the candidates of all requests that see it; a tile belongs to one program, so nothing is
accumulated across programs and there are no atomics. Price: the scores are computed twice.

Checked in Triton's interpreter (TRITON_INTERPRET=1, set before this module is imported) and compiled for sm_80 and
sm_90 without a GPU by the tests. Tile sizes are chosen by head width, not tuned: GPU speed has not been measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from reqdedup.ops.crossing_attention_kernels import context_gradient_kernel, forward_kernel, row_gradient_kernel
from reqdedup.ops.expand import expand
from reqdedup.ops.prefixes import Prefixes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_WIDTH = 256
_LOG2_E = 1.4426950408889634
_INTERPRETED = bool(triton.knobs.runtime.interpret)


class Launch(NamedTuple):
    """Tile sizes of one kernel: candidates, context tokens, warps and pipeline stages."""

    block_rows: int
    block_tokens: int
    num_warps: int
    num_stages: int


def launch_for(block_width: int, dtype: torch.dtype, *, backward: bool) -> Launch:
    """Tiles that fit the registers and the shared memory (163 KiB) of sm_80 at this padded head width."""
    if dtype == torch.float32:  # three TF32 products for each dot: small tiles, or the registers spill
        return Launch(32, 32, 8, 1) if block_width <= 128 else Launch(16, 16, 8, 1)
    if block_width <= 64:
        return Launch(64, 64, 4, 2 if backward else 3)
    if block_width <= 128:
        return Launch(32, 64, 4, 2) if backward else Launch(64, 64, 4, 2)
    return Launch(16, 32, 4, 1) if backward else Launch(32, 32, 4, 2)


def tiles(offsets_R1: torch.Tensor, num_elements: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(request, first element) of each tile of at most `block` elements of one request, made without waiting for a GPU.

    There are at most num_elements // block + R tiles; those too many carry the request R.
    """
    count_R = (offsets_R1.diff() + block - 1) // block
    end_R = count_R.cumsum(0)
    tile = torch.arange(num_elements // block + len(count_R), device=offsets_R1.device)
    request = torch.searchsorted(end_R, tile, right=True)
    known = request.clamp(max=len(count_R) - 1)
    return request, offsets_R1[known] + (tile - (end_R - count_R)[known]) * block


class Seen(NamedTuple):
    """Which tokens each request sees, for rows, and which rows see each context, for its tokens; all on the device.

    history_begin, history_end: [R].  context_offsets, context_row_offsets: [G + 1].
    history_end_of_row: [B]; None if every request has a context of its own, so that nothing hides a token.
    """

    history_begin: torch.Tensor
    history_end: torch.Tensor
    context_offsets: torch.Tensor
    context_row_offsets: torch.Tensor
    history_end_of_row: torch.Tensor | None

    @classmethod
    def of(
        cls, offsets_G1: torch.Tensor, row_offsets_R1: torch.Tensor, prefixes: Prefixes | None, num_rows: int
    ) -> Seen:
        if prefixes is None:
            return cls(offsets_G1[:-1], offsets_G1[1:], offsets_G1, row_offsets_R1, None)
        begin_R = prefixes.begin(offsets_G1)
        end_R = begin_R + prefixes.prefix_length_R
        end_B = expand(end_R, row_offsets_R1, num_rows=num_rows)
        return cls(begin_R, end_R, offsets_G1, prefixes.row_offsets(row_offsets_R1), end_B)


class _CrossingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        self_key: torch.Tensor,
        self_value: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        seen: Seen,
        row_offsets_R1: torch.Tensor,
    ) -> torch.Tensor:
        num_rows, num_heads, width = query.shape
        block_width = max(16, triton.next_power_of_2(width))
        launch = launch_for(block_width, query.dtype, backward=False)
        out = query.new_empty(query.shape)
        lse = query.new_empty(num_rows, num_heads, dtype=torch.float32)
        tile_request, tile_start = tiles(row_offsets_R1, num_rows, launch.block_rows)
        forward_kernel[(len(tile_request), num_heads)](
            query,
            self_key,
            self_value,
            key,
            value,
            seen.history_begin,
            seen.history_end,
            row_offsets_R1,
            tile_request,
            tile_start,
            out,
            lse,
            width**-0.5 * _LOG2_E,
            len(row_offsets_R1) - 1,
            num_heads,
            *(x.stride(0) for x in (query, self_key, self_value, key, value)),
            width,
            block_width,
            launch.block_rows,
            launch.block_tokens,
            _INTERPRETED,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
        ctx.save_for_backward(query, self_key, self_value, key, value, row_offsets_R1, out, lse)
        ctx.seen = seen
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, self_key, self_value, key, value, row_offsets_R1, out, lse = ctx.saved_tensors
        seen: Seen = ctx.seen
        num_rows, num_heads, width = query.shape
        num_requests = len(row_offsets_R1) - 1
        block_width = max(16, triton.next_power_of_2(width))
        launch = launch_for(block_width, query.dtype, backward=True)
        scale = width**-0.5
        grad_out = grads[0].contiguous()
        row_term = (grad_out.float() * out.float()).sum(-1)
        grad_rows = [query.new_empty(query.shape) for _ in range(3)]
        grad_context = [key.new_empty(key.shape) for _ in range(2)]
        sizes = (width, block_width, launch.block_rows, launch.block_tokens)
        options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}

        tile_request, tile_start = tiles(row_offsets_R1, num_rows, launch.block_rows)
        row_gradient_kernel[(len(tile_request), num_heads)](
            query,
            self_key,
            self_value,
            key,
            value,
            grad_out,
            seen.history_begin,
            seen.history_end,
            row_offsets_R1,
            tile_request,
            tile_start,
            lse,
            row_term,
            *grad_rows,
            scale * _LOG2_E,
            scale,
            num_requests,
            num_heads,
            *(x.stride(0) for x in (query, self_key, self_value, key, value)),
            *sizes,
            _INTERPRETED,
            **options,
        )
        has_prefixes = seen.history_end_of_row is not None
        tile_context, tile_start = tiles(seen.context_offsets, len(key), launch.block_tokens)
        context_gradient_kernel[(len(tile_context), num_heads)](
            query,
            key,
            value,
            grad_out,
            seen.context_offsets,
            seen.context_row_offsets,
            seen.history_end_of_row if has_prefixes else row_offsets_R1,  # else unread
            tile_context,
            tile_start,
            lse,
            row_term,
            *grad_context,
            scale * _LOG2_E,
            scale,
            len(seen.context_offsets) - 1,
            num_heads,
            *(x.stride(0) for x in (query, key, value)),
            *sizes,
            has_prefixes,
            _INTERPRETED,
            **options,
        )
        return *grad_rows, *grad_context, None, None


def crossing_attention_triton(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    context_offsets_G1: torch.Tensor,
    row_offsets_R1: torch.Tensor,
    prefixes: Prefixes | None = None,
) -> torch.Tensor:
    """`crossing_attention` by these kernels. Raises ValueError for types, widths and devices that they do not serve."""
    if query_BHK.dtype not in DTYPES or query_BHK.shape[2] > MAX_HEAD_WIDTH:
        raise ValueError(
            f"backend 'triton' needs one of {[str(dtype) for dtype in DTYPES]} and heads of at most {MAX_HEAD_WIDTH}, "
            f"found {query_BHK.dtype} and {query_BHK.shape[2]}; use sdpa there"
        )
    if query_BHK.device.type != "cuda" and not _INTERPRETED:
        raise ValueError(f"backend 'triton' needs CUDA tensors, found {query_BHK.device}; use flash or sdpa there")
    tensors = (query_BHK, self_key_BHK, self_value_BHK, key_THK, value_THK)
    # the kernels step over rows by any stride, over heads and columns by the usual ones
    rows = [x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in tensors]
    seen = Seen.of(context_offsets_G1, row_offsets_R1, prefixes, len(query_BHK))
    return _CrossingAttention.apply(*rows, seen, row_offsets_R1)
