"""What ranks do together beside gradients: sums, and lists gathered on all of them.

Without a process group everything here is the same with one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def group_for(purpose: str) -> dist.ProcessGroup:
    """A group of all ranks whose collectives need no common order with those of another; the same one for all runs that
    a process takes, since a group has sockets and threads of its own. A collective."""
    return _group(dist.group.WORLD, purpose)


@lru_cache(maxsize=4)
def _group(world: dist.ProcessGroup, purpose: str) -> dist.ProcessGroup:
    return dist.new_group()


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Sums over the ranks, the same numbers on every rank."""
    if not is_distributed():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def from_all_ranks(value: Any) -> list[Any]:
    """The picklable value of every rank, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
