"""The items of a log: their features, and how often each was a positive, counted over all ranks' shares of the table.

Retrieval needs both before its first step: counts for logQ, and items to rank against in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from reqdedup.batch import RequestBatch
from reqdedup.schema import REQUEST_TS
from reqdedup.training.judgement.catalogue_ranks import places_in
from reqdedup.training.plan import Split
from reqdedup.training.ranks import from_all_ranks

_MERGED_TOGETHER = 16
"""Parts held before they become one: memory is that of the distinct items."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """item_id_V: [V] int64, rising.  count_V: [V] rows of each.  columns: one value of each item-level column, [V]."""

    item_id_V: np.ndarray
    count_V: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def of_rows(cls, item_id_B: np.ndarray, count_B: np.ndarray, columns: dict[str, np.ndarray]) -> Catalogue:
        """Distinct items of rows; an item's columns are those of its first row."""
        item_id_V, first, inverse = np.unique(item_id_B, return_index=True, return_inverse=True)
        count_V = np.bincount(inverse, weights=count_B, minlength=len(item_id_V)).astype(np.int64)
        return cls(item_id_V=item_id_V, count_V=count_V, columns={name: c[first] for name, c in columns.items()})

    @classmethod
    def merged(cls, parts: list[Catalogue]) -> Catalogue:
        return cls.of_rows(
            np.concatenate([part.item_id_V for part in parts]),
            np.concatenate([part.count_V for part in parts]),
            {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        )

    @classmethod
    def read(
        cls, batches: Iterable[RequestBatch], columns: tuple[str, ...], *, counted: Split, labels: tuple[str, ...]
    ) -> Catalogue:
        """Of all ranks' shares: every item, and its rows of the counted users where one of `labels` is positive (none:
        all).

        batches: this rank's, over all users, at least one (an empty one, say); a collective, every rank must call it.
        """
        parts: list[Catalogue] = []
        for batch in batches:
            parts.append(_part(batch, columns, counted, labels))
            if len(parts) >= _MERGED_TOGETHER:
                parts = [cls.merged(parts)]
        return cls.merged(from_all_ranks(cls.merged(parts)))

    def counts_of(self, item_id_N: np.ndarray) -> np.ndarray:
        """[N] int64 counts, 0 for an item that is not there."""
        at_N = places_in(item_id_N, self.item_id_V)
        return np.where(at_N >= 0, self.count_V[at_N], 0) if len(self.count_V) else np.zeros(len(at_N), np.int64)

    def sample(self, num_items: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Ids and columns of at most `num_items` items, drawn evenly, the same for the same seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.item_id_V))[:num_items]
        chosen.sort()
        return torch.from_numpy(self.item_id_V[chosen]), {
            name: torch.from_numpy(values[chosen]) for name, values in self.columns.items()
        }


def _part(batch: RequestBatch, columns: tuple[str, ...], counted: Split, labels: tuple[str, ...]) -> Catalogue:
    is_counted_R = counted.contains(batch.user_id_R.numpy(), batch.request[REQUEST_TS].numpy())
    is_counted_B = is_counted_R[batch.request_of_row_B.numpy()]
    if labels:
        is_counted_B &= np.any([np.nan_to_num(batch.row[label].numpy()) > 0 for label in labels], axis=0)
    return Catalogue.of_rows(batch.item_id_B.numpy(), is_counted_B, {name: batch.row[name].numpy() for name in columns})
