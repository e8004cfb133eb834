"""From plain values to what a model reads: one code in the loader and in the server, so that the two cannot differ.

    what a log or a caller has           what a model reads
    one value, or many, of a column      `reqdedup.values`: a number of the column's type, a null as that says
    null label                           NaN, left out of the loss
    history of any length                its window by anchored windows, see HistoryCut

`cut_histories` works on whole columns, and the loader calls it on Arrow's memory, as it calls `values.numbers`.
`Transforms` is what a model declares: which columns, and the cut; it takes plain values, once per request. Ids are
assigned when a log is ingested and are never hashed again here: the text ids of a log become numbers through the
bundle's items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from reqdedup.arrays.ranges import offsets_of
from reqdedup.arrays.recent_events import RecentEvents, window_of
from reqdedup.arrays.windows import HistoryCut, gather_windows
from reqdedup.batch import RequestBatch
from reqdedup.models.config import ModelConfig
from reqdedup.schema import HISTORY_END, HISTORY_TS, ITEM_ID, TIMELINE_VERSION, Column, EngagementSchema, Kind, Level
from reqdedup.values import UnfitError, check_readable, many, null_of, one

HISTORY_PREFIX = "history_"

DEFAULTS = {"position": 0}
"""What a column without nulls is taken to be if a caller leaves it out: nothing has been shown yet."""

OF_WINDOW = (HISTORY_END, TIMELINE_VERSION)
"""Request-level columns that say which events a history is; a server knows them from the window that it read."""


def history_name(column_name: str) -> str:
    """Key of a sequence column in `RequestBatch.history`."""
    return column_name.removeprefix(HISTORY_PREFIX)


def cut_histories(
    sequences: Mapping[str, tuple[np.ndarray, np.ndarray]], cut: HistoryCut, history_end_R: np.ndarray | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sequences of R requests cut to their windows: name -> (packed values [T], offsets [R + 1]).

    history_end_R: [R] int64; without it, or where it is negative, the history counts as the whole timeline.
    """
    result = {}
    for name, (values, offsets) in sequences.items():
        length_R = np.diff(offsets)
        end_R = length_R if history_end_R is None else np.where(history_end_R < 0, length_R, history_end_R)
        skipped_R = cut.skipped(length_R, end_R)
        if skipped_R.any():
            kept_R = length_R - skipped_R
            values, offsets = gather_windows(values, offsets[:-1] + skipped_R, kept_R), offsets_of(kept_R)
        result[name] = (values, offsets)
    return result


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """What a model reads, and how plain values become that.

    columns: its inputs with their types and levels, item_id first; labels are none.  cut: the longest history.
    defaults: what an input becomes that is None or left out; a nullable one that is not here becomes what a null does,
        any other is required.
    computed: request-level inputs that follow from the history and the time of the request, and how: a server computes
        them from the events that it read, with the code that computed those of the table.
    """

    columns: tuple[Column, ...]
    cut: HistoryCut
    defaults: Mapping[str, bool | int | float] = field(default_factory=dict)
    computed: Mapping[str, RecentEvents] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for an input that no model can read, text for example."""
        for column in self.columns:
            check_readable(column.name, column.dtype)

    @classmethod
    def of(
        cls, config: ModelConfig, schema: EngagementSchema, *, stride: int = 0, longest_history: int | None = None
    ) -> Transforms:
        """Of a model of this log. stride: of the cut, 0 means its default.  longest_history: events of the log's
        longest, which computed columns were computed from; None: that of the model.

        Raises ValueError if the log lacks a column of the model.
        """
        missing = [name for name in config.columns if name not in schema]
        if missing:
            raise ValueError(
                f"columns {', '.join(missing)} required by the model, the log has {', '.join(schema.names)}"
            )
        columns = tuple(schema[name] for name in (ITEM_ID, *config.columns))
        cut = HistoryCut(max_events=config.max_history, stride=stride)
        defaults = {column.name: DEFAULTS[column.name] for column in columns if column.name in DEFAULTS}
        has_times = HISTORY_TS in schema
        computed = {
            column.name: RecentEvents(
                window_s=window_of(column.computed) if has_times else None,
                max_events=longest_history or cut.max_events,
            )
            for column in columns
            if column.computed
        }
        cut = HistoryCut(max_events=cut.max_events, stride=cut.step)
        return cls(columns=columns, cut=cut, defaults=defaults, computed=computed)

    @cached_property
    def request_columns(self) -> tuple[Column, ...]:
        """Scalars and vectors that a request brings, or a store has."""
        return tuple(
            column
            for column in self.columns
            if column.level is Level.REQUEST and column.kind is not Kind.SEQUENCE and column.name not in OF_WINDOW
        )

    @cached_property
    def history_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind is Kind.SEQUENCE)

    @cached_property
    def item_columns(self) -> tuple[Column, ...]:
        """Of the candidates, beside item_id."""
        return tuple(column for column in self.columns if column.level is Level.ITEM)

    def default_of(self, column: Column) -> bool | int | float | None:
        """What the input becomes if it is None or left out; None if it is required."""
        return self.defaults.get(column.name, null_of(column) if column.nullable else None)

    def requests(self, values: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`RequestBatch.request` of R requests: [R] for each scalar, [R, width] for each vector.

        values: of each request by column name; what has a default may be None or left out, other names are not
        looked at. Raises UnfitError for a missing or unfit value.
        """
        return {
            column.name: self._of_requests(column, [of_request.get(column.name) for of_request in values])
            for column in self.request_columns
        }

    def history(self, events: Mapping[str, Any], *, end: int = -1) -> dict[str, torch.Tensor]:
        """`RequestBatch.history` of one request: its window, [L] for each sequence column.

        events: columns by their names in a batch (`item_id`, ...), oldest first, of one length.
        end: number of events in the timeline before the request; -1 if the history is all of it.
        Raises UnfitError for a missing or unfit column and for unequal lengths.
        """
        plain: dict[str, np.ndarray] = {}
        for column in self.history_columns:
            name = history_name(column.name)
            if name not in events:
                raise UnfitError("history", f"column {name}", ", ".join(events) or "none")
            plain[name] = many(events[name], column, f"history.columns.{name}", takes_nan=True)
        lengths = {name: len(values) for name, values in plain.items()}
        if len(set(lengths.values())) > 1:
            raise UnfitError("history", "columns of one length", str(lengths), hint="; an event is an element of each")
        length = next(iter(lengths.values()))
        first = self.cut.skipped_of_one(length, length if end < 0 else end)
        return {name: torch.from_numpy(values[first:]) for name, values in plain.items()}

    def rows(self, candidates: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Candidates as (item_id [B], `RequestBatch.row`). Raises UnfitError for a missing or unfit column."""
        if ITEM_ID not in candidates:
            raise UnfitError("candidates", f"column {ITEM_ID}", ", ".join(candidates) or "none")
        item_id_B = self._tensor(self.columns[0], candidates[ITEM_ID], "candidates")
        row = {}
        for column in self.item_columns:
            values = candidates.get(column.name)
            values_B = self._tensor(column, [None] * len(item_id_B) if values is None else values, "candidates")
            if len(values_B) != len(item_id_B):
                wanted = f"{len(item_id_B)} values, one for each item_id,"
                raise UnfitError(f"candidates.{column.name}", wanted, str(len(values_B)))
            row[column.name] = values_B
        return item_id_B, row

    def batch(
        self,
        *,
        request: Mapping[str, Any],
        history: Mapping[str, Any],
        candidates: Mapping[str, Any],
        user_id: int = -1,
        history_end: int = -1,
        timeline_version: int = -1,
    ) -> RequestBatch:
        """One request with its candidates as a batch; `RequestBatch.concatenate` puts several together."""
        item_id_B, row = self.rows(candidates)
        events = self.history(history, end=history_end)
        length = len(next(iter(events.values())))
        known = {HISTORY_END: history_end, TIMELINE_VERSION: timeline_version}
        of_window = {
            column.name: self._tensor(column, [known[column.name]], "request")
            for column in self.columns
            if column.name in known
        }
        return RequestBatch(
            user_id_R=torch.tensor([user_id]),
            item_id_B=item_id_B,
            request_of_row_B=torch.zeros(len(item_id_B), dtype=torch.int64),
            row_offsets_R1=torch.tensor([0, len(item_id_B)]),
            history_offsets_R1=torch.tensor([0, length]),
            request={**self.requests([request]), **of_window},
            row=row,
            history=events,
        )

    def _tensor(self, column: Column, values: Any, path: str) -> torch.Tensor:
        """Of a list of values; NaN is one, as in tables, but not in a vector."""
        default, takes_nan = self.default_of(column), column.kind is not Kind.VECTOR
        return torch.from_numpy(many(values, column, f"{path}.{column.name}", default=default, takes_nan=takes_nan))

    def _of_requests(self, column: Column, values: Sequence[Any]) -> torch.Tensor:
        """Of one value from each request: what does not fit is said of that value, not of the list."""
        try:
            return self._tensor(column, values, "request")
        except UnfitError:
            for value in values:
                if value is not None or self.default_of(column) is None:
                    one(value, column, f"request.{column.name}")
            raise
