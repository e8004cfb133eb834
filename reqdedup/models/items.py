"""The items that a bundle knows: what a server needs of an item beside its vector, in plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reqdedup.arrays.places import places_in


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Items:
    """The items of the table that a model was trained on, by rising id.

    item_id_V: [V] int64.  count_V: [V] int64, rows of each: its popularity.
    first_seen_V: [V] int64, time of the first request that had it [microseconds since 1970, UTC].
    columns: the model's item-level columns that belong to the item and not to an impression, [V] each.
    keys: the log's own ids, texts, if its items had some ("" if it is missing); item_id is made of them at ingest.
    """

    item_id_V: np.ndarray
    count_V: np.ndarray
    first_seen_V: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        arrays = {"item_id": self.item_id_V, "count": self.count_V, "first_seen": self.first_seen_V, **self.columns}
        lengths = {name: len(values) for name, values in arrays.items()}
        if self.keys is not None:
            lengths["keys"] = len(self.keys)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"items: one value of each required for every item, found {lengths}")
        if any(values.dtype != np.int64 for values in (self.item_id_V, self.count_V, self.first_seen_V)):
            raise ValueError("items: item_id, count and first_seen of int64 required, found another type")
        if (np.diff(self.item_id_V) <= 0).any():
            raise ValueError("items: rising ids required, found one that is not above the one before")

    def __repr__(self) -> str:
        return f"<Items {len(self):,}, with {', '.join(('count', 'first_seen', *self.columns))}>"

    def __len__(self) -> int:
        return len(self.item_id_V)

    def positions(self, item_id_N: np.ndarray) -> np.ndarray:
        """[N] int64: where each item stands in the arrays, -1 for an item that is not there."""
        return places_in(item_id_N, self.item_id_V)

    def ids_of(self, keys: Sequence[str]) -> np.ndarray:
        """[N] int64 ids of the log's own ids. Raises ValueError for one that is not there or if there are none."""
        if self.keys is None:
            raise ValueError("items: ids as numbers required, the log has no others; found texts")
        try:
            return np.array([self._id_of_key[key] for key in keys], np.int64)
        except KeyError as error:
            raise ValueError(f"items: ids of the {len(self):,} items of the log required, found {error}") from None

    def id_of(self, key: str) -> int | None:
        """Of one of the log's own ids; None if no item has it."""
        return self._id_of_key.get(key)

    @cached_property
    def _id_of_key(self) -> dict[str, int]:
        return {key: item_id for key, item_id in zip(self.keys or (), self.item_id_V.tolist(), strict=True) if key}
