"""A source whose rows are requests with a list of candidates: each of them a row of its own, as the layouts have it.

    request  user  shown: list of structs        request  user  shown.item  shown.click
    7        1     [{5, 0}, {6, 1}]         ->   7        1     5           0
                                                 7        1     6           1

What stands in the item's own list of structs goes with it; a list beside it only if it is named, since its elements may
be anything's. A row without candidates has no row in the result, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from reqdedup.arrays.ranges import greedy_ranges
from reqdedup.dedup.stored import is_list, value_bytes
from reqdedup.storage.foreign.leaves import Leaf, Shape
from reqdedup.storage.foreign.source import MAX_PIECE_BYTES, Piece, RowSource, Stretch


class CandidateSource(RowSource):
    """The rows of the candidates. exploded: leaves that have a value per candidate.

    num_candidates: rows given so far; num_empty: source rows without a candidate so far.
    Raises ValueError for lists that have not as many elements as the item's.
    """

    def __init__(self, source: Table | str | Path | Sequence[str | Path], item: str, beside: Sequence[str]) -> None:
        super().__init__(source)
        of = self.leaves[item]
        own = [leaf.name for leaf in self.leaves.values() if leaf.column == of.column and leaf.list_id == of.list_id]
        wrong = [name for name in beside if name in self.leaves and self.leaves[name].list_id is None]
        if wrong:
            raise ValueError(f"{self.name}: lists beside {item} required as candidates, found {', '.join(wrong)}")
        self.exploded = tuple(dict.fromkeys((*own, *(name for name in beside if name in self.leaves))))
        self._item = item
        self.num_candidates = self.num_empty = 0
        self.leaves |= {name: _element(self.leaves[name]) for name in self.exploded}

    def pieces(self, names: Sequence[str], part: Sequence[Stretch] | None = None) -> Iterator[Piece]:
        """All candidates, with the leaves of their requests on each."""
        self.num_candidates = self.num_empty = 0
        for piece in super().pieces(list(dict.fromkeys((*names, self._item))), part):
            yield from self._rows(piece)

    def independent_pieces(self, names: Sequence[str], part: int | None = None) -> Iterator[Piece]:
        for piece in super().independent_pieces(list(dict.fromkeys((*names, self._item))), part):
            yield from self._rows(piece)

    def _rows(self, piece: Piece) -> Iterator[Piece]:
        lengths = _lengths(piece.arrays[self._item])
        self.num_candidates += int(lengths.sum())
        self.num_empty += int((lengths == 0).sum())
        for name in self.exploded:
            if name in piece.arrays and not np.array_equal(_lengths(piece.arrays[name]), lengths):
                row = int(np.argmax(_lengths(piece.arrays[name]) != lengths))
                raise ValueError(
                    f"{piece.path} at row {piece.rows[row] + 1}: as many elements in {name} as in {self._item} "
                    f"required ({lengths[row]}), found {_lengths(piece.arrays[name])[row]}; name only such lists"
                )
        fat = [array for name, array in piece.arrays.items() if name not in self.exploded]
        row_bytes = sum(map(value_bytes, map(_plain, fat)), np.full(len(lengths), 64, np.int64)) * lengths
        for start, end in greedy_ranges((MAX_PIECE_BYTES, row_bytes)):
            request_of_row = np.repeat(np.arange(start, end), lengths[start:end])
            if not len(request_of_row):
                continue
            at = pa.array(request_of_row)
            arrays = {
                name: array.slice(start, end - start).flatten() if name in self.exploded else array.take(at)
                for name, array in piece.arrays.items()
            }
            yield Piece(arrays, len(request_of_row), piece.path, piece.rows[request_of_row])


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _element(leaf: Leaf) -> Leaf:
    """The leaf of one element of the list, or list of lists, that this leaf is."""
    if leaf.shape is Shape.LIST:
        return replace(leaf, shape=Shape.SCALAR)
    kind = leaf.type.value_type
    if is_list(kind) and not pa.types.is_map(kind.value_type) and not is_list(kind.value_type):
        return replace(leaf, shape=Shape.LIST, type=kind.value_type)
    return replace(leaf, type=kind)
