"""The gradient of one step: what this rank adds to the mean loss over all ranks' terms, computed in pieces if asked.

The mean is over the terms of all ranks and pieces together, so neither uneven ranks nor uneven pieces weigh wrong.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reqdedup.batch import RequestBatch
from reqdedup.training.augment import hide_events, permute_judgements
from reqdedup.training.config import TrainingConfig
from reqdedup.training.devices import autocast, in_float32
from reqdedup.training.loss import scale_for_mean_over_ranks
from reqdedup.training.meters import BatchMeters
from reqdedup.training.optimizers import Optimizers
from reqdedup.training.ranks import sum_over_ranks
from reqdedup.training.tasks import Ranking, Task


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """loss: mean over all ranks' terms [nats], 0 without any.  num_terms: of all ranks.  meters: what all ranks'
    batches held.  wait_s: for the slowest rank."""

    loss: float
    num_terms: int
    meters: BatchMeters
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """trained: the model, whose backward averages gradients over the ranks.  rank, world_size: of this process."""

    config: TrainingConfig
    task: Task
    trained: nn.Module
    optimizer: Optimizers
    device: torch.device
    rank: int
    world_size: int

    def compute_gradients(self, batch: RequestBatch, step: int) -> StepResult:
        """Into the parameters' `grad`; a collective.

        step: number of the step, which with the rank seeds torch, so that a resumed run draws the same dropout, hidden
            events and items as one that was not interrupted.
        """
        torch.manual_seed(self.config.seed * 1_000_003 + step * self.world_size + self.rank)
        self.trained.train()
        if self.config.permute_judgements:
            labels = cast(Ranking, self.task).labels_of_log
            batch = permute_judgements(batch, labels, self.config.history_cut)
        meters = vars(BatchMeters.of(batch))
        pieces = self._pieces(batch)
        self.optimizer.zero_grad()
        total, num_terms, wait_s, counts = 0.0, 0, 0.0, [0.0] * len(meters)
        for number, piece in enumerate(pieces, start=1):
            is_last = number == len(pieces)
            with self._adding_up(is_last):
                loss_sum, own_terms = self._loss(piece)
                before = time.monotonic()
                sums = [float(loss_sum.detach()), own_terms, *(meters.values() if is_last else counts)]
                of_piece, terms_of_piece, *counts = sum_over_ranks(sums)
                wait_s += time.monotonic() - before  # all others are here
                total, num_terms = total + of_piece, num_terms + int(terms_of_piece)
                divisor = terms_of_piece if len(pieces) == 1 else 1
                scale_for_mean_over_ranks(loss_sum, divisor, self.world_size).backward()
        if len(pieces) > 1:
            self.optimizer.divide_gradients(max(num_terms, 1))
        return StepResult(
            loss=total / max(num_terms, 1),
            num_terms=num_terms,
            meters=BatchMeters(**{name: int(count) for name, count in zip(meters, counts)}),
            wait_s=wait_s,
        )

    def _pieces(self, batch: RequestBatch) -> list[RequestBatch]:
        """The batch in `config.pieces`, or whole if one of them would have less than two rows over all ranks, of which
        BatchNorm has no variance; a collective if there are several."""
        if self.config.pieces == 1:
            return [batch]
        pieces = batch.cut(self.config.pieces)
        return pieces if min(sum_over_ranks([piece.num_rows for piece in pieces])) >= 2 else [batch]

    def _adding_up(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients with the last piece."""
        if is_last or not isinstance(self.trained, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.trained.no_sync()

    def _loss(self, batch: RequestBatch) -> tuple[torch.Tensor, int]:
        """Sum of this rank's loss terms, and their number; some events are hidden from the model."""
        seen, inputs = hide_events(batch, self.config.hide_events), self.task.inputs(batch)
        with autocast(self.device, self.config.precision):
            outputs = self.trained(seen, *inputs)
        return self.task.loss(in_float32(outputs), batch, *inputs)
