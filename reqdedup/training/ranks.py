"""What ranks do together beside gradients: batches in lockstep, sums, and lists gathered on all of them.

Without a process group everything here is the same with one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from reqdedup.batch import RequestBatch
from reqdedup.training.loader import RequestLoader


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


def in_lockstep(loader: RequestLoader) -> Iterator[tuple[RequestBatch, int]]:
    """One epoch as (this rank's batch, rows of all ranks), equally often on every rank.

    Ranks may get unequal numbers of batches; one that has no more computes on empty batches until all are through, so
    that collectives match. A rank whose loader was resumed in the next epoch already waits for the others in the same
    way.
    """
    is_ahead = loader.epoch > min(from_all_ranks(loader.epoch))
    batches: Iterator[RequestBatch] = iter(()) if is_ahead else iter(loader)
    while True:
        batch = next(batches, None)
        have_batch, rows = sum_over_ranks([batch is not None, batch.num_rows if batch is not None else 0])
        if not have_batch:
            return
        yield (loader.empty_batch() if batch is None else batch), int(rows)
