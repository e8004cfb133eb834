"""The ways to compute crossing attention on a GPU, each over the same inputs: equal histories, equal fan-out.

| variant | how | copies K/V | backward |
|---|---|---|---|
| triton    | ours: one program per tile of a request's candidates | no | yes |
| sdpa      | ours, portable: [context ; candidates] under a diagonal mask | no | yes |
| expanded  | the duplicated baseline: SDPA over a copy of K/V for each candidate, the self term its last key | B times | yes |
| grouped   | candidates packed as the queries of one long attention, self term merged by log-sum-exp | no | none: the merge is by hand |
| flex      | FlexAttention, compiled, [context ; candidates] under a block mask | no | yes |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from reqdedup.ops.crossing_attention import crossing_attention


class Workload(NamedTuple):
    """R requests of one history length with the same number of candidates each."""

    requests: int
    length: int
    candidates: int
    heads: int
    head_width: int

    def flops(self, *, backward: bool) -> float:
        """Two products forward, five backward (the scores once more), for each candidate and key, itself included."""
        scores = self.requests * self.candidates * self.heads * (self.length + 1)
        return (10 if backward else 4) * scores * self.head_width


@dataclass(frozen=True)
class Inputs:
    """query, self_key, self_value [B, H, K], key, value [T, H, K], offsets, and a gradient of the output."""

    workload: Workload
    tensors: tuple[torch.Tensor, ...]
    grad: torch.Tensor
    history_offsets_R1: torch.Tensor
    row_offsets_R1: torch.Tensor

    @classmethod
    def random(cls, workload: Workload, *, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        num_rows, num_tokens = workload.requests * workload.candidates, workload.requests * workload.length
        shapes = [(n, workload.heads, workload.head_width) for n in (num_rows,) * 4 + (num_tokens,) * 2]
        made = [torch.randn(shape, generator=generator, device=device, dtype=torch.float32) for shape in shapes]
        query, self_key, self_value, grad, key, value = (x.to(dtype) for x in made)
        request = torch.arange(workload.requests + 1, device=device)
        return cls(
            workload,
            tuple(x.requires_grad_() for x in (query, self_key, self_value, key, value)),
            grad,
            request * workload.length,
            request * workload.candidates,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.grad.dtype

    def to(self, dtype: torch.dtype) -> Inputs:
        tensors = tuple(x.detach().to(dtype).requires_grad_() for x in self.tensors)
        return Inputs(self.workload, tensors, self.grad.to(dtype), self.history_offsets_R1, self.row_offsets_R1)

    def by_request(self) -> tuple[torch.Tensor, ...]:
        """The tensors as [R, H, C, K] and [R, H, S, K]."""
        size = self.workload.requests
        return tuple(x.unflatten(0, (size, -1)).transpose(1, 2) for x in self.tensors)


@dataclass(frozen=True)
class Variant:
    """forward: [B, H, K] of the inputs, differentiable where has_backward."""

    forward: Callable[[Inputs], torch.Tensor]
    has_backward: bool = True

    def forward_run(self, inputs: Inputs) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                self.forward(inputs)

        return run

    def backward_run(self, inputs: Inputs) -> Callable[[], object]:
        """The backward pass alone, over a graph that is kept."""
        out = self.forward(inputs)
        return lambda: torch.autograd.grad(out, inputs.tensors, inputs.grad, retain_graph=True)


def ours(backend: str) -> Callable[[Inputs], torch.Tensor]:
    def attend(inputs: Inputs) -> torch.Tensor:
        query, self_key, self_value, key, value = inputs.tensors
        offsets = (inputs.history_offsets_R1, inputs.row_offsets_R1)
        return crossing_attention(query, self_key, self_value, key, value, *offsets, backend=backend)

    return attend


def expanded(inputs: Inputs) -> torch.Tensor:
    query, self_key, self_value, key, value = inputs.by_request()
    candidates = inputs.workload.candidates

    def with_self(context: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """[B, H, S + 1, K]: each candidate's own copy of the context, itself at the end."""
        copies = context[:, None].expand(-1, candidates, -1, -1, -1)
        return torch.cat([copies, own.transpose(1, 2)[:, :, :, None]], dim=3).flatten(0, 1)

    query_BH1K = query.transpose(1, 2).flatten(0, 1)[:, :, None]
    attended = F.scaled_dot_product_attention(query_BH1K, with_self(key, self_key), with_self(value, self_value))
    return attended.squeeze(2)


def grouped(inputs: Inputs) -> torch.Tensor:
    query, self_key, self_value, key, value = inputs.by_request()
    if query.is_cuda:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    score = (query.float() * self_key.float()).sum(-1) * query.shape[-1] ** -0.5
    total = torch.logaddexp(lse.float(), score)
    merged = out.float() * (lse.float() - total).exp()[..., None]
    merged = merged + self_value.float() * (score - total).exp()[..., None]
    return merged.to(query.dtype).transpose(1, 2).flatten(0, 1)


def flex(inputs: Inputs) -> torch.Tensor:
    query, self_key, self_value, key, value = inputs.by_request()
    attend, mask = _flex(inputs.workload, query.device)
    out = attend(query, torch.cat([key, self_key], dim=2), torch.cat([value, self_value], dim=2), block_mask=mask)
    return out.transpose(1, 2).flatten(0, 1)


@cache
def _flex(workload: Workload, device: torch.device) -> tuple[Callable[..., Any], Any]:
    """The attention, compiled on a GPU, and its block mask: made once per shape, as a user would."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(batch: Any, head: Any, candidate: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key < workload.length) | (key - workload.length == candidate)

    num_keys = workload.length + workload.candidates
    mask = create_block_mask(sees, None, None, workload.candidates, num_keys, device=device)
    attend: Any = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    return attend, mask


VARIANTS = {
    "triton": Variant(ours("triton")),
    "sdpa": Variant(ours("sdpa")),
    "expanded": Variant(expanded),
    "grouped": Variant(grouped, has_backward=False),
    "flex": Variant(flex),
}
