"""In-batch negatives of all ranks, with exact gradients.

With W ranks every row is contrasted with W times as many items; the loss and its gradients are those of one process on
the concatenated batch. It moves N x D numbers each way per step, and the loss is computed R x N instead of R x B.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def means_over_ranks(gradients: Sequence[torch.Tensor], group: dist.ProcessGroup | None = None) -> list[torch.Tensor]:
    """The mean over the ranks of each of several sparse gradients, coalesced; three collectives for all of them.

    Every rank gives those of the same tables in the same order, of one dtype. Rows travel in rank order and are added
    up in it, so that a run repeats bit for bit. DDP's own sum of sparse gradients over gloo does not (torch 2.13), and
    over NCCL there is none. Takes about twice the memory of all ranks' gradients of all tables.
    """
    gradients = [gradient.coalesce() for gradient in gradients]
    is_alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1
    if not gradients or is_alone:
        return gradients
    world_size, num_tables = dist.get_world_size(group), len(gradients)
    rows, values = [g.indices()[0] for g in gradients], [g.values() for g in gradients]
    sizes_WG = _gather(torch.tensor([[len(row_U) for row_U in rows]]), [1] * world_size, group)
    numbers_WG = sizes_WG * torch.tensor([value_UD.shape[1] for value_UD in values])
    row_N = _gather(torch.cat(rows), sizes_WG.sum(1).tolist(), group).split(sizes_WG.flatten().tolist())
    flat_N = torch.cat([value_UD.flatten() for value_UD in values])
    value_N = _gather(flat_N, numbers_WG.sum(1).tolist(), group).split(numbers_WG.flatten().tolist())
    means = []
    for g, gradient in enumerate(gradients):
        row_U, place_N = torch.unique(torch.cat(row_N[g::num_tables]), return_inverse=True)
        value_ND = torch.cat(value_N[g::num_tables]).view(len(place_N), gradient.shape[1])
        value_UD = value_ND.new_zeros(len(row_U), gradient.shape[1]).index_add_(0, place_N, value_ND / world_size)
        means.append(
            torch.sparse_coo_tensor(row_U[None], value_UD, gradient.shape, is_coalesced=True, check_invariants=False)
        )
    return means


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
