"""In-batch negatives of all ranks, with exact gradients.

With W ranks every row is contrasted with W times as many items; the loss and its gradients are those of one process on
the concatenated batch. It moves N x D numbers each way per step, and the loss is computed R x N instead of R x B.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from reqdedup.training.loss import Columns


def gather_columns(columns: Columns, group: dist.ProcessGroup | None = None) -> Columns:
    """The columns of all ranks in rank order, uneven and empty ones included; a collective, forward and backward.

    The gradient of an item is the sum of what the losses of all ranks say about it. With DDP scale each rank's loss sum
    by W / N_global as ever. Without a process group the columns come back as they are.
    """
    if columns.first_own or not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return columns
    num_own = torch.tensor([len(columns.item_id_N)])
    sizes = [int(size) for size in _gather(num_own, [1] * dist.get_world_size(group), group)]
    ids_N2 = _gather(torch.stack([columns.item_id_N, columns.user_id_N], dim=1), sizes, group)
    return Columns(
        item_ND=_GatherRows.apply(columns.item_ND, sizes, group),
        item_id_N=ids_N2[:, 0],
        user_id_N=ids_N2[:, 1],
        log_q_N=_gather(columns.log_q_N.detach(), sizes, group),
        first_own=sum(sizes[: dist.get_rank(group)]),
    )


def mean_over_ranks(gradient: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The mean over the ranks of a sparse gradient, coalesced; a collective.

    Rows travel in rank order and are added up in it, so that a run repeats bit for bit. DDP's own sum of sparse
    gradients over gloo does not (torch 2.13), and over NCCL there is none.
    """
    gradient = gradient.coalesce()
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return gradient
    world_size, row_U = dist.get_world_size(group), gradient.indices()[0]
    sizes = [int(size) for size in _gather(torch.tensor([len(row_U)]), [1] * world_size, group)]
    row_N, value_ND = _gather(row_U, sizes, group), _gather(gradient.values(), sizes, group)
    row_U, place_N = torch.unique(row_N, return_inverse=True)
    value_UD = value_ND.new_zeros(len(row_U), value_ND.shape[1]).index_add_(0, place_N, value_ND / world_size)
    return torch.sparse_coo_tensor(row_U[None], value_UD, gradient.shape, is_coalesced=True, check_invariants=False)


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, [sum of sizes, ...]; the gradient is summed over ranks, each takes its own rows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
        rank = dist.get_rank(group)
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        ctx.group = group
        return _gather(x, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.own], None, None


def _gather(x: torch.Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
    """x of every rank, one after the other; gloo gathers equal shapes only, so all are padded to the longest."""
    longest = max(sizes)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes)])
