"""How much a user did shortly before each request: a feature that the log's own histories already hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from reqdedup.arrays.recent_events import recent_events, spec_of
from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.dedup.history_time import check_history_times, newest_events
from reqdedup.schema import HISTORY_ITEM_ID, HISTORY_TS, REQUEST_TS, Column, EngagementSchema, Level


@dataclass(frozen=True, kw_only=True)
class RecentEventCounts:
    """Number of history events in the `window_s` seconds before each request, as a feature to compute.

    name: of the feature column.  item_dtype: of the history's items; `of` takes it from a table's schema.
    Events count when request_ts - window_s <= history_ts < request_ts. Where a log's histories carry no times, the
    history's length is counted instead. Histories follow ingestion, not time, so every event is looked at.
    """

    window_s: float
    name: str = "recent_event_count"
    item_dtype: str = "int64"

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ValueError(f"recent_event_counts: window_s must be positive, found {self.window_s}")

    @property
    def column(self) -> Column:
        """The feature column, described."""
        doc = f"history events in the {self.window_s:g} s before the request; all of them where the log has no times"
        return Column(name=self.name, dtype="int32", level=Level.REQUEST, doc=doc, computed=spec_of(self.window_s))

    def of(self, schema: EngagementSchema) -> RecentEventCounts:
        """The same feature of a log with this schema."""
        return replace(self, item_dtype=schema[HISTORY_ITEM_ID].dtype) if HISTORY_ITEM_ID in schema else self

    def inputs(self, schema: EngagementSchema) -> tuple[str, ...]:
        """Columns of the main table to read. Raises ValueError for a log without a history."""
        if HISTORY_TS in schema:
            return (REQUEST_TS, HISTORY_TS)
        if HISTORY_ITEM_ID not in schema:
            raise ValueError(
                f"recent_event_counts: {HISTORY_TS} or {HISTORY_ITEM_ID} required, found "
                f"{', '.join(schema.names)}; convert the table with --rename COLUMN={HISTORY_TS}, and "
                "--history-time-unit where the times are not in milliseconds"
            )
        return (HISTORY_ITEM_ID,)

    def __call__(self, requests: pa.RecordBatch) -> pa.Array:
        """Count of each request, [R] int32, of a batch with one row per request.

        Raises ValueError if the times of events cannot be milliseconds: all counts would be 0.
        """
        if HISTORY_TS not in requests.schema.names:
            history = requests.column(HISTORY_ITEM_ID)
            _, offsets = numpy_from_blobs(history.dictionary, self.item_dtype)
            return pa.array(np.diff(offsets)[history.indices.to_numpy()].astype(np.int32))
        history = requests.column(HISTORY_TS)
        time_ms, offsets = numpy_from_blobs(history.dictionary, "int64")
        of_request = history.indices.to_numpy()
        request_us = requests.column(REQUEST_TS).cast(pa.int64()).to_numpy()
        check_history_times(
            newest_events(time_ms, offsets)[of_request],
            request_us // 1000,
            what=f"recent_event_counts: {HISTORY_TS}",
            unit="ms",
            todo="convert the log again with --history-time-unit {unit}",
        )
        return pa.array(recent_events(time_ms, offsets, of_request, request_us, window_s=self.window_s))


def recent_event_counts(window_s: float, *, name: str = "recent_event_count") -> RecentEventCounts:
    """A ready feature for `add_request_feature`: history events in the `window_s` seconds before each request."""
    return RecentEventCounts(window_s=window_s, name=name)
