"""Scored candidates of many requests, as a table has them and as `rerank` takes them; a curve as a table.

user_id, request_id, item_id     int64
score                            of the ranking, any number type
vector                           list of floats, if a term needs vectors
others                           what a configuration names: integers, flags or text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.rerank.sweep import SweepPoint

SCORED_KEYS = ("user_id", "request_id", "item_id")


@dataclass(frozen=True, eq=False)
class ScoredCandidates:
    """scores: [B].  item_id: [B].  row_offsets: [R + 1].  vectors: [B, d] or None.  columns: by name, [B] each."""

    scores: np.ndarray
    item_id: np.ndarray
    row_offsets: np.ndarray
    vectors: np.ndarray | None
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table, *, score: str = "score", vector: str = "vector") -> ScoredCandidates:
        """Of a table in any order. Raises ValueError for a missing column, and for vectors of several lengths."""
        if missing := [name for name in (*SCORED_KEYS, score) if name not in table.schema.names]:
            raise ValueError(
                f"scored candidates: columns {', '.join(missing)} required, found {', '.join(table.schema.names)}"
            )
        table = table.sort_by([(name, "ascending") for name in SCORED_KEYS]).combine_chunks()
        keys = np.stack([table[name].to_numpy() for name in SCORED_KEYS[:2]])
        starts = np.flatnonzero((np.diff(keys, axis=1) != 0).any(0)) + 1
        vectors = None
        if vector in table.schema.names and len(table):
            lengths = pc.unique(pc.list_value_length(table[vector])).to_pylist()
            if len(lengths) != 1 or not lengths[0]:
                raise ValueError(f"scored candidates: vectors of one length required, found {lengths}")
            flat = pc.list_flatten(table[vector]).to_numpy()
            vectors = flat.reshape(len(table), lengths[0]).astype(np.float64)
        others = [name for name in table.schema.names if name not in (*SCORED_KEYS, score, vector)]
        return cls(
            scores=table[score].to_numpy().astype(np.float64),
            item_id=table["item_id"].to_numpy(),
            row_offsets=np.concatenate([[0], starts, [len(table)]]) if len(table) else np.zeros(1, np.int64),
            vectors=vectors,
            columns={name: _plain(table[name]) for name in others},
        )

    def arguments(self) -> dict[str, Any]:
        """Those of `rerank` and `sweep` beside the configuration."""
        return {
            "scores": self.scores,
            "item_id": self.item_id,
            "vectors": self.vectors,
            "columns": self.columns,
            "row_offsets": self.row_offsets,
        }


def curve_table(points: Sequence[SweepPoint]) -> pa.Table:
    """The points of a sweep, a row per figure: point, requests, figure, value."""
    rows = [
        {"point": point.name, "requests": point.requests, "figure": figure, "value": value}
        for point in points
        for figure, value in point.figures.items()
    ]
    fields = {"point": pa.string(), "requests": pa.int64(), "figure": pa.string(), "value": pa.float64()}
    return pa.Table.from_pylist(rows, schema=pa.schema([pa.field(n, t, nullable=False) for n, t in fields.items()]))


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    """Integers, flags and text as arrays that can be compared; a null is a value of its own."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(["" if value is None else value for value in column.to_pylist()], np.str_)
    return column.to_numpy()
