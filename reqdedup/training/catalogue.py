"""The items of a log: their features, and how often each was a positive, counted over all ranks' shares of the table.

Retrieval needs both before its first step: counts for logQ, and items to rank against in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reqdedup.arrays.places import places_in
from reqdedup.batch import RequestBatch
from reqdedup.schema import REQUEST_TS
from reqdedup.training.ranks import from_all_ranks
from reqdedup.training.split import Split

_MERGED_TOGETHER = 16
"""Parts held before they become one: memory is that of the distinct items."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Distinct items of rows; what an item has but its count is that of its earliest row, whoever asks.

    item_id_V: [V] int64, rising.  count_V: [V] int64, rows of each.  first_seen_V: [V] time of its earliest row.
    columns: item-level ones, [V].  keys: texts, [V] objects, if it has some.
    varying: names of columns that differ between rows of one item, as those of an impression do.
    """

    item_id_V: np.ndarray
    count_V: np.ndarray
    first_seen_V: np.ndarray
    columns: dict[str, np.ndarray]
    keys: np.ndarray | None = None
    varying: frozenset[str] = frozenset()

    @classmethod
    def of_rows(
        cls,
        item_id_B: np.ndarray,
        count_B: np.ndarray,
        time_B: np.ndarray,
        columns: dict[str, np.ndarray],
        keys: np.ndarray | None = None,
        varying: frozenset[str] = frozenset(),
    ) -> Catalogue:
        """Counts are added up; of rows of one time the first counts as the earliest."""
        order = np.lexsort((time_B, item_id_B))
        item_id_B, time_B = item_id_B[order], time_B[order]
        is_first_B = np.diff(item_id_B, prepend=item_id_B[:1]) != 0
        is_first_B[:1] = True
        first_V, item_B = np.flatnonzero(is_first_B), np.cumsum(is_first_B) - 1
        found, differing = {}, set(varying)
        for name, x_B in columns.items():
            x_B = x_B[order]
            found[name] = x_B[first_V]
            x_of_item_B = found[name][item_B]
            # two NaN are one value
            if ((x_B != x_of_item_B) & ((x_B == x_B) | (x_of_item_B == x_of_item_B))).any():
                differing.add(name)
        return cls(
            item_id_V=item_id_B[first_V],
            count_V=np.bincount(item_B, weights=count_B[order], minlength=len(first_V)).astype(np.int64),
            first_seen_V=time_B[first_V],
            columns=found,
            keys=None if keys is None else keys[order][first_V],
            varying=frozenset(differing),
        )

    @classmethod
    def merged(cls, parts: Sequence[Catalogue]) -> Catalogue:
        """parts: in the order of their rows."""
        keys = [part.keys for part in parts if part.keys is not None]
        return cls.of_rows(
            np.concatenate([part.item_id_V for part in parts]),
            np.concatenate([part.count_V for part in parts]),
            np.concatenate([part.first_seen_V for part in parts]),
            {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
            np.concatenate(keys) if keys else None,
            frozenset().union(*(part.varying for part in parts)),
        )

    @classmethod
    def read(
        cls, batches: Iterable[RequestBatch], columns: tuple[str, ...], *, counted: Split, labels: tuple[str, ...]
    ) -> Catalogue:
        """Of all ranks' shares: every item, and its rows of the counted users where one of `labels` is positive (none:
        all).

        batches: this rank's, over all users, at least one (an empty one, say); a collective, every rank must call it.
        """
        return cls.of_all_ranks(_part(batch, columns, counted, labels) for batch in batches)

    @classmethod
    def of_parts(cls, parts: Iterable[Catalogue]) -> Catalogue:
        """The parts, at least one, as one; few are held at once."""
        held: list[Catalogue] = []
        for part in parts:
            held.append(part)
            if len(held) >= _MERGED_TOGETHER:
                held = [cls.merged(held)]
        return cls.merged(held)

    @classmethod
    def of_all_ranks(cls, parts: Iterable[Catalogue]) -> Catalogue:
        """This rank's parts, at least one, and those of the others as one; a collective."""
        return cls.merged(from_all_ranks(cls.of_parts(parts)))

    def counts_of(self, item_id_N: np.ndarray) -> np.ndarray:
        """[N] int64 counts, 0 for an item that is not there."""
        at_N = places_in(item_id_N, self.item_id_V)
        return np.where(at_N >= 0, self.count_V[at_N], 0) if len(self.count_V) else np.zeros(len(at_N), np.int64)

    def columns_of(self, batch: RequestBatch) -> dict[str, torch.Tensor]:
        """The columns of each row's item, [B], in place of those that its rows have; every item must be there."""
        at_B = np.searchsorted(self.item_id_V, batch.item_id_B.cpu().numpy())
        return {name: torch.from_numpy(x_V[at_B]).to(batch.item_id_B.device) for name, x_V in self.columns.items()}

    def sample(self, num_items: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Ids and columns of at most `num_items` items, drawn evenly, the same for the same seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.item_id_V))[:num_items]
        chosen.sort()
        return torch.from_numpy(self.item_id_V[chosen]), {
            name: torch.from_numpy(values[chosen]) for name, values in self.columns.items()
        }


def _part(batch: RequestBatch, columns: tuple[str, ...], counted: Split, labels: tuple[str, ...]) -> Catalogue:
    time_R, request_of_row_B = batch.request[REQUEST_TS].numpy(), batch.request_of_row_B.numpy()
    is_counted_B = counted.contains(batch.user_id_R.numpy(), time_R)[request_of_row_B]
    if labels:
        is_counted_B &= np.any([np.nan_to_num(batch.row[label].numpy()) > 0 for label in labels], axis=0)
    values = {name: batch.row[name].numpy() for name in columns}
    return Catalogue.of_rows(batch.item_id_B.numpy(), is_counted_B, time_R[request_of_row_B], values)
