"""Batches of all ranks in lockstep, so that every rank takes part in the same collectives equally often."""

from __future__ import annotations

from collections.abc import Iterator

from reqdedup.batch import RequestBatch
from reqdedup.training.loader import RequestLoader
from reqdedup.training.ranks import from_all_ranks, sum_over_ranks


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
