"""What differs between the things that a model can be trained for: columns, loss, and what is
measured on held-out users.

The loss is given as (sum over this rank's terms, number of terms), so that the loop can weigh uneven ranks right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.training.config import TrainingConfig
from reqdedup.training.judgement.outcomes import Outcomes
from reqdedup.training.loader import RequestLoader
from reqdedup.training.split import Split


class LoaderOf(Protocol):
    """Makes this rank's loader over the users of both sides of the split, in the order of the table.

    options: of `RequestLoader`, as `users` and `on_block`; and `requests` of a batch.
    """

    def __call__(self, columns: tuple[str, ...], **options: Any) -> RequestLoader: ...


class Task(Protocol):
    """columns: names of what the loader reads.  positive_label: label that is positive in the rows
    it keeps (None: all)."""

    @classmethod
    def prepare(cls, config: TrainingConfig, loader_of: LoaderOf, device: torch.device, train: Split) -> Self:
        """The task, with what it must know of the log before the first step; a collective.

        device: of the batches.  train: the requests that it learns from.
        """
        ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def positive_label(self) -> str | None: ...

    @property
    def judged_label(self) -> str | None:
        """Label that is positive in the rows that are judged (None: all)."""
        ...

    @property
    def num_requests(self) -> Mapping[int, int]:
        """Requests, or chunks of them, that an epoch of all ranks holds, in each row group or bucket of the source."""
        ...

    @property
    def learned_until_us(self) -> int:
        """Time of the newest request of the training part whose labels were known [microseconds since 1970, UTC]."""
        ...

    def inputs(self, batch: RequestBatch) -> tuple[Any, ...]:
        """What the model is given beside the batch."""
        ...

    def loss(self, outputs: Any, batch: RequestBatch, *inputs: Any) -> tuple[torch.Tensor, int]:
        """Sum of the loss terms [nats] of this rank, part of the graph even without terms, and their number.

        inputs: as `inputs` gave them.
        """
        ...

    def evaluate(self, model: nn.Module, batches: Sequence[RequestBatch]) -> Outcomes:
        """What the model says of these rows; it is in evaluation mode, no collectives. batches: at least one."""
        ...

    def rivals(self) -> Mapping[str, Callable[[RequestBatch], RequestBatch]]:
        """Requests made worse on purpose, by name: what the same model says of them is judged beside it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the loss has counted on this rank, for the checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
