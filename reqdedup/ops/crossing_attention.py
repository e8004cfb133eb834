"""Crossing attention: each candidate attends to its own request's context and to itself, never to another candidate.

    out_b = softmax([q_b K_r^T ; q_b k_b] / sqrt(K)) [V_r ; v_b]          r: the request of row b

K_r and V_r exist once per request and are never copied to its rows. Requests of one user may share them too, each
seeing a prefix (`Prefixes`). Every backend computes the same thing:

| backend | where | how |
|---|---|---|
| naive  | anywhere | a loop over the rows: the definition |
| sdpa   | anywhere | padded (request, heads, candidates), the self term as a diagonal mask |
| flash  | CPU | torch's own flash kernel on the shared context, the self term merged by log-sum-exp |
| triton | CUDA | one program per tile of a request's candidates, which reads the request's K/V once |

Source: PinFM (arXiv 2507.12704), the crossing component of the deduplicated cross-attention transformer (DCAT).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from reqdedup.ops.crossing_attention_flash import PADDED_CONTEXT_AT_MOST, crossing_attention_flash
from reqdedup.ops.prefixes import Prefixes, ranges
from reqdedup.ops.ragged import Rectangle, length_bucket

Backend = Callable[..., torch.Tensor]


def crossing_attention(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    context_offsets_G1: torch.Tensor,
    row_offsets_R1: torch.Tensor,
    *,
    prefixes: Prefixes | None = None,
    backend: str = "auto",
    padded_context_at_most: int = PADDED_CONTEXT_AT_MOST,
) -> torch.Tensor:
    """What each candidate reads from its request's context and from itself: [B, H, K].

    query, self_key, self_value: [B, H, K] of the rows.  key, value: [T, H, K] of the contexts, packed.
    context_offsets_G1: [G + 1] int64, rising from 0 to T.  row_offsets_R1: [R + 1] int64, rising from 0 to B.
        A request may have an empty context (its candidates then read themselves alone) or no rows.
    prefixes: which requests share which context; None if each has its own, so that G = R.
    Scores are scaled by 1 / sqrt(K).
    backend: naive, sdpa, flash, triton, or auto: flash on a CPU; on a GPU triton if it is installed and serves the
    type and the head width, else sdpa.
    padded_context_at_most: longest context [tokens] that flash pads, to read it in one call with others of similar
        length. With 0 a request's bits do not depend on the lengths of the others.
    Raises ValueError for shapes that do not fit together and for a backend that cannot run here.
    """
    tensors = (query_BHK, self_key_BHK, self_value_BHK, key_THK, value_THK)
    check_shapes(*tensors, context_offsets_G1, row_offsets_R1, prefixes)
    if backend == "auto":
        backend = _best_backend(query_BHK)
    if backend not in BACKENDS:
        raise ValueError(f"crossing_attention: backend one of auto, {', '.join(BACKENDS)} required, found {backend!r}")
    if not query_BHK.numel():  # no rows: nothing to compute, but every input keeps a (zero) gradient, as DDP wants
        return query_BHK + self_key_BHK + self_value_BHK + 0 * (key_THK.sum() + value_THK.sum())
    options = {"padded_context_at_most": padded_context_at_most} if backend == "flash" else {}
    return BACKENDS[backend](*tensors, context_offsets_G1, row_offsets_R1, prefixes, **options)


def _best_backend(query_BHK: torch.Tensor) -> str:
    if query_BHK.device.type == "cpu":
        return "flash"
    if query_BHK.device.type != "cuda" or query_BHK.dtype == torch.float64 or query_BHK.shape[2] > 256:
        return "sdpa"
    return "triton" if _triton_is_installed() else "sdpa"


@cache
def _triton_is_installed() -> bool:
    if importlib.util.find_spec("triton") is not None:
        return True
    warnings.warn(
        "crossing_attention: Triton is not installed, so the GPU uses padded attention (sdpa); pip install triton",
        stacklevel=3,
    )
    return False


def check_shapes(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    context_offsets_G1: torch.Tensor,
    row_offsets_R1: torch.Tensor,
    prefixes: Prefixes | None = None,
) -> None:
    """Raise ValueError if the arguments do not fit together; looks at shapes and types, never at values."""
    check_rows(query_BHK, self_key_BHK, self_value_BHK)
    if key_THK.ndim != 3 or key_THK.shape != value_THK.shape or key_THK.shape[1:] != query_BHK.shape[1:]:
        raise ValueError(
            f"crossing_attention: key and value [T, {query_BHK.shape[1]}, {query_BHK.shape[2]}] required, "
            f"found {tuple(key_THK.shape)} and {tuple(value_THK.shape)}"
        )
    request_offsets = row_offsets_R1 if prefixes is None else prefixes.request_offsets_G1
    num_requests = len(row_offsets_R1) - 1 if prefixes is None else prefixes.num_requests
    if (
        context_offsets_G1.shape != request_offsets.shape
        or row_offsets_R1.shape != (num_requests + 1,)
        or num_requests < 0
    ):
        raise ValueError(
            f"crossing_attention: history and row offsets, both [R + 1], required, "
            f"found {tuple(context_offsets_G1.shape)} and {tuple(row_offsets_R1.shape)}"
            + ("" if prefixes is None else f" with {num_requests} prefixes of {len(request_offsets) - 1} contexts")
        )
    dtypes = {x.dtype for x in (query_BHK, self_key_BHK, self_value_BHK, key_THK, value_THK)}
    if len(dtypes) > 1:
        raise ValueError(f"crossing_attention: one dtype required, found {sorted(map(str, dtypes))}")


def check_rows(query_BHK: torch.Tensor, self_key_BHK: torch.Tensor, self_value_BHK: torch.Tensor) -> None:
    """Raise ValueError if the rows' own tensors do not fit together."""
    if query_BHK.ndim != 3 or self_key_BHK.shape != query_BHK.shape or self_value_BHK.shape != query_BHK.shape:
        found = [tuple(x.shape) for x in (query_BHK, self_key_BHK, self_value_BHK)]
        raise ValueError(
            f"crossing_attention: query, self_key, self_value of one shape [B, H, K] required, found {found}"
        )


def crossing_attention_naive(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    context_offsets_G1: torch.Tensor,
    row_offsets_R1: torch.Tensor,
    prefixes: Prefixes | None = None,
) -> torch.Tensor:
    """The definition: one row at a time, its request's context and itself laid out as one sequence."""
    scale = query_BHK.shape[-1] ** -0.5
    (begins, ends), rows = ranges(context_offsets_G1, prefixes), row_offsets_R1.tolist()
    attended = []
    for r in range(len(rows) - 1):
        for b in range(rows[r], rows[r + 1]):
            key_LHK = torch.cat([key_THK[begins[r] : ends[r]], self_key_BHK[b : b + 1]])
            value_LHK = torch.cat([value_THK[begins[r] : ends[r]], self_value_BHK[b : b + 1]])
            weight_HL = torch.softmax(torch.einsum("hk,lhk->hl", query_BHK[b], key_LHK) * scale, dim=-1)
            attended.append(torch.einsum("hl,lhk->hk", weight_HL, value_LHK))
    return torch.stack(attended)


def crossing_attention_sdpa(
    query_BHK: torch.Tensor,
    self_key_BHK: torch.Tensor,
    self_value_BHK: torch.Tensor,
    key_THK: torch.Tensor,
    value_THK: torch.Tensor,
    context_offsets_G1: torch.Tensor,
    row_offsets_R1: torch.Tensor,
    prefixes: Prefixes | None = None,
) -> torch.Tensor:
    """Portable form: one call per group of requests of similar history and number of rows, [context ; candidates] as
    keys under a mask that shows each candidate its context and, of the candidates, only itself."""
    (begins, ends), rows = ranges(context_offsets_G1, prefixes), row_offsets_R1.tolist()
    device = query_BHK.device
    buckets: dict[tuple[int, int], list[int]] = {}
    for r in range(len(rows) - 1):
        length, count = ends[r] - begins[r], rows[r + 1] - rows[r]
        if count:
            length_key = length_bucket(length, steps_per_octave=2) if length else -1
            buckets.setdefault((length_key, length_bucket(count, steps_per_octave=2)), []).append(r)
    attended, row_of_attended = [], []
    for (length_key, _), requests in sorted(buckets.items()):
        row = Rectangle.of(requests, rows, rows[1:], device)
        num_candidates = row.shape[1]
        sees = torch.eye(num_candidates, dtype=torch.bool, device=device).expand(len(requests), -1, -1)
        key, value = row.take(self_key_BHK), row.take(self_value_BHK)
        if length_key >= 0:
            token = Rectangle.of(requests, begins, ends, device)
            sees = torch.cat([token.valid[:, None, :].expand(-1, num_candidates, -1), sees], dim=2)
            key = torch.cat([token.take(key_THK), key], dim=1)
            value = torch.cat([token.take(value_THK), value], dim=1)
        out_NCHK = F.scaled_dot_product_attention(
            row.take(query_BHK).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=sees[:, None]
        ).transpose(1, 2)
        attended.append(out_NCHK[row.valid])
        row_of_attended.append(row.token[row.valid])
    return torch.cat(attended)[torch.cat(row_of_attended).argsort()]


def crossing_attention_triton(*arguments: Any) -> torch.Tensor:
    """The Triton kernels, imported when first asked for: the package is optional and missing beside a CPU torch."""
    try:
        from reqdedup.ops import crossing_attention_triton as kernels
    except ImportError as error:
        raise ValueError("backend 'triton' needs the package triton; pip install triton, or use sdpa") from error
    return kernels.crossing_attention_triton(*arguments)


BACKENDS: dict[str, Backend] = {
    "naive": crossing_attention_naive,
    "sdpa": crossing_attention_sdpa,
    "flash": crossing_attention_flash,
    "triton": crossing_attention_triton,
}
