# mypy: allow-untyped-defs
# (Triton evaluates the annotations of a kernel, and knows only its own)
"""Triton kernels of crossing attention; `crossing_attention_triton` launches them and says how they work.

Tensors are [N, H, K] with any step between rows and the usual ones between heads and columns; `lse` and `row_term` are
[B, H] float32, dense. Scores are in base 2: scale_log2 = log2(e) / sqrt(K). Request r sees the packed tokens from
history_begin[r] to history_end[r].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _dot(a, b, upcast: tl.constexpr):
    # the interpreter multiplies bfloat16 as if its bits were integers, so it gets float32
    if upcast:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _load(pointer, index, index_end, stride, width: tl.constexpr, block_width: tl.constexpr):
    # rows `index` of a [N, H, K] tensor at one head, zero beyond index_end and beyond the head's width
    column = tl.arange(0, block_width)
    mask = (index < index_end)[:, None] & (column < width)[None, :]
    return tl.load(pointer + index[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def _store(pointer, x, index, index_end, stride, width: tl.constexpr, block_width: tl.constexpr):
    column = tl.arange(0, block_width)
    mask = (index < index_end)[:, None] & (column < width)[None, :]
    tl.store(pointer + index[:, None] * stride + column[None, :], x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def forward_kernel(
    query,
    self_key,
    self_value,
    key,
    value,
    history_begin,
    history_end,
    row_offsets,
    tile_request,
    tile_start,
    out,
    lse,
    scale_log2,
    num_requests,
    num_heads,
    query_stride,
    self_key_stride,
    self_value_stride,
    key_stride,
    value_stride,
    width: tl.constexpr,
    block_width: tl.constexpr,
    block_rows: tl.constexpr,
    block_tokens: tl.constexpr,
    upcast: tl.constexpr,
):
    head = tl.program_id(1)
    request = tl.load(tile_request + tl.program_id(0))
    if request == num_requests:
        return
    row_end = tl.load(row_offsets + request + 1)
    row = tl.load(tile_start + tl.program_id(0)) + tl.arange(0, block_rows)
    begin = tl.load(history_begin + request)
    end = tl.load(history_end + request)
    shift = head * width

    q = _load(query + shift, row, row_end, query_stride, width, block_width)
    k_self = _load(self_key + shift, row, row_end, self_key_stride, width, block_width)
    m = tl.sum(q.to(tl.float32) * k_self.to(tl.float32), 1) * scale_log2
    total = tl.full([block_rows], 1.0, tl.float32)
    acc = _load(self_value + shift, row, row_end, self_value_stride, width, block_width).to(tl.float32)
    for start in range(begin, end, block_tokens):
        token = start + tl.arange(0, block_tokens)
        k = _load(key + shift, token, end, key_stride, width, block_width)
        v = _load(value + shift, token, end, value_stride, width, block_width)
        score = _dot(q, tl.trans(k), upcast) * scale_log2
        score = tl.where((token < end)[None, :], score, float("-inf"))
        m_new = tl.maximum(m, tl.max(score, 1))
        p = tl.exp2(score - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + _dot(p.to(v.dtype), v, upcast)
        m = m_new
    _store(out + shift, acc / total[:, None], row, row_end, num_heads * width, width, block_width)
    tl.store(lse + row * num_heads + head, m + tl.log2(total), mask=row < row_end)


@triton.jit
def row_gradient_kernel(
    query,
    self_key,
    self_value,
    key,
    value,
    grad_out,
    history_begin,
    history_end,
    row_offsets,
    tile_request,
    tile_start,
    lse,
    row_term,
    grad_query,
    grad_self_key,
    grad_self_value,
    scale_log2,
    scale,
    num_requests,
    num_heads,
    query_stride,
    self_key_stride,
    self_value_stride,
    key_stride,
    value_stride,
    width: tl.constexpr,
    block_width: tl.constexpr,
    block_rows: tl.constexpr,
    block_tokens: tl.constexpr,
    upcast: tl.constexpr,
):
    head = tl.program_id(1)
    request = tl.load(tile_request + tl.program_id(0))
    if request == num_requests:
        return
    row_end = tl.load(row_offsets + request + 1)
    row = tl.load(tile_start + tl.program_id(0)) + tl.arange(0, block_rows)
    begin = tl.load(history_begin + request)
    end = tl.load(history_end + request)
    shift = head * width
    out_stride = num_heads * width

    q = _load(query + shift, row, row_end, query_stride, width, block_width)
    k_self = _load(self_key + shift, row, row_end, self_key_stride, width, block_width).to(tl.float32)
    v_self = _load(self_value + shift, row, row_end, self_value_stride, width, block_width).to(tl.float32)
    grad = _load(grad_out + shift, row, row_end, out_stride, width, block_width)
    row_lse = tl.load(lse + row * num_heads + head, mask=row < row_end, other=0.0)
    term = tl.load(row_term + row * num_heads + head, mask=row < row_end, other=0.0)

    q_wide = q.to(tl.float32)
    grad_wide = grad.to(tl.float32)
    p_self = tl.exp2(tl.sum(q_wide * k_self, 1) * scale_log2 - row_lse)
    ds_self = p_self * (tl.sum(grad_wide * v_self, 1) - term) * scale
    _store(grad_self_value + shift, p_self[:, None] * grad_wide, row, row_end, out_stride, width, block_width)
    _store(grad_self_key + shift, ds_self[:, None] * q_wide, row, row_end, out_stride, width, block_width)
    acc = tl.zeros([block_rows, block_width], tl.float32)
    for start in range(begin, end, block_tokens):
        token = start + tl.arange(0, block_tokens)
        k = _load(key + shift, token, end, key_stride, width, block_width)
        v = _load(value + shift, token, end, value_stride, width, block_width)
        score = _dot(q, tl.trans(k), upcast) * scale_log2
        p = tl.where((token < end)[None, :], tl.exp2(score - row_lse[:, None]), 0.0)
        ds = p * (_dot(grad, tl.trans(v), upcast) - term[:, None])
        acc += _dot(ds.to(k.dtype), k, upcast)
    _store(grad_query + shift, acc * scale + ds_self[:, None] * k_self, row, row_end, out_stride, width, block_width)


@triton.jit
def context_gradient_kernel(
    query,
    key,
    value,
    grad_out,
    context_offsets,
    context_row_offsets,
    history_end_of_row,
    tile_context,
    tile_start,
    lse,
    row_term,
    grad_key,
    grad_value,
    scale_log2,
    scale,
    num_contexts,
    num_heads,
    query_stride,
    key_stride,
    value_stride,
    width: tl.constexpr,
    block_width: tl.constexpr,
    block_rows: tl.constexpr,
    block_tokens: tl.constexpr,
    has_prefixes: tl.constexpr,
    upcast: tl.constexpr,
):
    head = tl.program_id(1)
    context = tl.load(tile_context + tl.program_id(0))
    if context == num_contexts:
        return
    token_end = tl.load(context_offsets + context + 1)
    token = tl.load(tile_start + tl.program_id(0)) + tl.arange(0, block_tokens)
    begin = tl.load(context_row_offsets + context)
    end = tl.load(context_row_offsets + context + 1)
    shift = head * width
    out_stride = num_heads * width

    k = _load(key + shift, token, token_end, key_stride, width, block_width)
    v = _load(value + shift, token, token_end, value_stride, width, block_width)
    acc_key = tl.zeros([block_tokens, block_width], tl.float32)
    acc_value = tl.zeros([block_tokens, block_width], tl.float32)
    for start in range(begin, end, block_rows):
        row = start + tl.arange(0, block_rows)
        q = _load(query + shift, row, end, query_stride, width, block_width)
        grad = _load(grad_out + shift, row, end, out_stride, width, block_width)
        row_lse = tl.load(lse + row * num_heads + head, mask=row < end, other=0.0)
        term = tl.load(row_term + row * num_heads + head, mask=row < end, other=0.0)
        # rows beyond the end have zero q and grad: p is 1 there, and adds nothing to either gradient
        p = tl.exp2(_dot(k, tl.trans(q), upcast) * scale_log2 - row_lse[None, :])
        if has_prefixes:
            seen_end = tl.load(history_end_of_row + row, mask=row < end, other=0)
            p = tl.where(token[:, None] < seen_end[None, :], p, 0.0)
        acc_value += _dot(p.to(grad.dtype), grad, upcast)
        ds = p * (_dot(v, tl.trans(grad), upcast) - term[None, :])
        acc_key += _dot(ds.to(q.dtype), q, upcast)
    _store(grad_key + shift, acc_key * scale, token, token_end, out_stride, width, block_width)
    _store(grad_value + shift, acc_value, token, token_end, out_stride, width, block_width)
