"""The items that may be retrieved: ids, vectors, and the columns by which a request may filter them.

    row           0        1        2
    item_id       4        9       17      ascending, so the order of rows is the order of ids
    vectors     [. .]    [. .]    [. .]    of length 1
    columns     item_category: 3, 1, 3

Rows are positions in these arrays; what leaves this module by `id_of` are ids again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reqdedup.arrays.places import places_in
from reqdedup.models.bundle import Bundle
from reqdedup.serving.requests import ItemFilter, RequestError


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """What is known of N items.

    item_id: [N] int64, ascending, no id twice.  vectors: [N, D] float32 of length 1, contiguous; a memory map will do.
    columns: item-level columns by name, [N] each.  keys: the ids as the log has them, [N], if they are known.
    """

    item_id: np.ndarray
    vectors: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    keys: Sequence[str] | np.ndarray | None = None

    @classmethod
    def of(
        cls,
        item_id: np.ndarray,
        vectors: np.ndarray,
        columns: Mapping[str, np.ndarray] | None = None,
        keys: Sequence[str] | np.ndarray | None = None,
    ) -> ItemVectors:
        """Of items in any order; what lies in order is not copied.

        Raises ValueError for lengths that differ and for an id that comes twice.
        """
        columns = dict(columns or {})
        lengths = {"item_id": len(item_id), "vectors": len(vectors)} | {n: len(x) for n, x in columns.items()}
        if keys is not None:
            lengths["keys"] = len(keys)
        if len(set(lengths.values())) > 1 or vectors.ndim != 2:
            raise ValueError(f"items: one id, vector and value each required, found {lengths}, vectors {vectors.shape}")
        item_id = np.asarray(item_id, np.int64)
        if (np.diff(item_id) <= 0).any():
            order = np.argsort(item_id, kind="stable")
            item_id, vectors, keys = item_id[order], vectors[order], None if keys is None else np.asarray(keys)[order]
            columns = {name: np.asarray(value_N)[order] for name, value_N in columns.items()}
            if (repeats := np.flatnonzero(np.diff(item_id) == 0)).size:
                raise ValueError(f"items: each id once required, found {item_id[repeats[0]]} twice")
        if vectors.dtype != np.float32 or not vectors.flags.c_contiguous:
            vectors = np.ascontiguousarray(vectors, np.float32)
        return cls(item_id, vectors, columns, keys)

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> ItemVectors:
        """The items of a retrieval model; their columns are the bundle's, `count` and `first_seen` [microseconds].

        Raises ValueError for a bundle without vectors.
        """
        items, vectors = bundle.items, bundle.item_vectors
        if vectors is None:
            raise ValueError(
                f"{bundle.folder}: vectors of the items required, found none; a {bundle.task} model has none"
            )
        columns = {**items.columns, "count": items.count_V, "first_seen": items.first_seen_V}
        return cls.of(items.item_id_V, vectors, columns, items.keys)

    def __len__(self) -> int:
        return len(self.item_id)

    def rows_of(self, item_id: np.ndarray) -> np.ndarray:
        """Rows of those of these ids that are here, ascending, each once."""
        wanted = np.unique(np.asarray(item_id, np.int64))
        row = places_in(wanted, self.item_id)
        return row[row >= 0]

    def kept(self, filter: ItemFilter) -> np.ndarray | None:
        """Rows that allow list and categories leave, ascending; None if the filter has neither.

        Raises RequestError for a category that is no column of the items.
        """
        kept = None if filter.allow is None else self.rows_of(filter.allow)
        for name, values in filter.categories.items():
            if name not in self.columns:
                there = ", ".join(self.columns) or "none here"
                raise RequestError("filter.categories", f"a column of the items ({there})", repr(name))
            if kept is None:
                kept = self._by_value[name].rows(values)
            else:
                kept = kept[np.isin(np.asarray(self.columns[name])[kept], values)]
        return kept

    def maximum(self, name: str) -> float:
        """Largest value of a column, 0 if there are no items or none is above; looked up once."""
        if name not in self._maxima:
            self._maxima[name] = float(np.max(self.columns[name], initial=0))
        return self._maxima[name]

    @cached_property
    def _maxima(self) -> dict[str, float]:
        return {}

    @cached_property
    def _by_value(self) -> Mapping[str, _RowsByValue]:
        return {name: _RowsByValue(np.asarray(value_N)) for name, value_N in self.columns.items()}


class _RowsByValue:
    """Rows of each value of a column, found without looking at the others; sorted at the first filter."""

    def __init__(self, value_N: np.ndarray) -> None:
        self._unsorted_N = value_N

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order_N = np.argsort(self._unsorted_N, kind="stable")
        return self._unsorted_N[order_N], order_N

    def rows(self, values: np.ndarray) -> np.ndarray:
        value_N, order_N = self._sorted
        wanted = np.unique(np.asarray(values))
        begins, ends = np.searchsorted(value_N, wanted), np.searchsorted(value_N, wanted, "right")
        parts = [order_N[begin:end] for begin, end in zip(begins, ends) if begin < end]
        if not parts:
            return order_N[:0]
        if len(parts) == 1:
            return parts[0]
        is_kept_N = np.zeros(len(value_N), bool)
        for part in parts:
            is_kept_N[part] = True
        return np.flatnonzero(is_kept_N)
