"""What requests see of a sequence: their `history_end`, their histories as blobs, and one user's sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog

from reqdedup.arrays.ranges import offsets_of
from reqdedup.arrays.windows import gather_windows
from reqdedup.dedup.encoding import blobs_from_numpy
from reqdedup.schema import (
    HISTORY_END,
    HISTORY_TS,
    NUMBER_WIDTH_BYTES,
    REQUEST_TS,
    TIMELINE_VERSION,
    Column,
    Kind,
    Level,
)
from reqdedup.sequences.columns import numbers_of
from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_TS, USER, SequenceDefinition
from reqdedup.sequences.tables import dtype_of
from reqdedup.sequences.timeline import Timeline, open_timeline
from reqdedup.sequences.windows import BucketWindows, count_below, cut_windows, segments, window_columns
from reqdedup.storage.iceberg.layout import buckets_of

BATCH_TOKENS = 4_194_304
"""Events of the distinct windows of a batch of histories."""


def history_ends(catalog: Catalog, namespace: str, requests: pa.Table, *, version: int | None = None) -> pa.Table:
    """The requests with `history_end`, how many of the user's events had arrived before `request_ts`, and
    `timeline_version`; columns of these names are replaced.

    requests: columns user_id (int64) and request_ts (a timestamp), in any order.
    Raises ValueError if there is no such timeline or version, or one of the columns is missing or has nulls.
    """
    timeline = open_timeline(catalog, namespace, version)
    user_R, at_us_R = requests_of(requests)
    end_R = np.zeros(len(user_R), np.int64)
    for bucket, row_R in by_bucket(user_R, timeline.num_buckets):
        events = timeline.read(bucket, [ARRIVAL_TS])
        first_R, last_R = segments(events.column(USER).to_numpy(), user_R[row_R])
        end_R[row_R] = count_below(numbers_of(events.column(ARRIVAL_TS)), first_R, last_R, at_us_R[row_R])
    return with_ends(requests, end_R, timeline.state.version)


def with_ends(requests: pa.Table, end_R: np.ndarray, version: int) -> pa.Table:
    """The requests with these ends, of this version of the timeline."""
    kept = requests.drop_columns([n for n in (HISTORY_END, TIMELINE_VERSION) if n in requests.column_names])
    said = pa.array(np.full(len(end_R), version, np.int32))
    return kept.append_column(HISTORY_END, pa.array(end_R.astype(np.int64))).append_column(TIMELINE_VERSION, said)


def windows(
    timeline: Timeline,
    definition: SequenceDefinition,
    user_R: np.ndarray,
    at_us_R: np.ndarray,
    *,
    seen_R: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, BucketWindows]]:
    """What requests see of a sequence, bucket by bucket: which of the requests, and their windows.

    seen_R: as of `cut_windows`.
    """
    for bucket, row_R in by_bucket(user_R, timeline.num_buckets):
        yield (
            row_R,
            cut_windows(
                timeline.read(bucket, window_columns(timeline, definition)),
                definition,
                user_R[row_R],
                at_us_R[row_R],
                kept_from_us=timeline.state.kept_from_us,
                seen_R=None if seen_R is None else seen_R[row_R],
            ),
        )


def history_columns(timeline: Timeline, definition: SequenceDefinition) -> list[Column]:
    """Columns that `add_histories` makes. Raises ValueError for one that is no number."""
    found = []
    for name in definition.columns:
        kind = timeline.table.schema().find_field(name).field_type
        dtype = "int64" if str(kind) == "timestamptz" else dtype_of(kind)
        if dtype not in NUMBER_WIDTH_BYTES:
            raise ValueError(
                f"definition {definition.name}: columns of numbers required in a history, found {name} of {kind}; name "
                "those to have (`columns`)"
            )
        doc = f"{name} of the sequence {definition.name}, oldest first"
        if name == EVENT_TS:
            doc = f"when the events of {definition.name} happened, epoch milliseconds, oldest arrival first"
        found.append(Column(name=history_name(name), dtype=dtype, level=Level.REQUEST, doc=doc, kind=Kind.SEQUENCE))
    return found


def history_name(column: str) -> str:
    """Name of a sequence's column in a table of requests; times have the one that they have there in every log."""
    return HISTORY_TS if column == EVENT_TS else f"history_{column}"


def with_arrival(definition: SequenceDefinition) -> SequenceDefinition:
    """The definition with what `history_values` needs beside its columns."""
    return replace(definition, columns=tuple(dict.fromkeys((*definition.columns, ARRIVAL_TS))))


def history_values(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column of the timeline as histories have it: `event_ts` in epoch milliseconds, and never after the arrival,
    whatever a client's clock said; the others as they are."""
    return np.minimum(columns[EVENT_TS], columns[ARRIVAL_TS]) // 1000 if name == EVENT_TS else columns[name]


def add_histories(
    catalog: Catalog,
    namespace: str,
    sequence: str,
    rows: pa.Table,
    *,
    columns: Sequence[str] | None = None,
    version: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows with a history for every column of a sequence (`history_name`), as blobs that rows of a window share,
    and `history_end` and `timeline_version`.

    Here `history_end` counts the sequence's own events, so that the histories of a user are slices of one numbered row
    of events, as training and serving take them; `history_ends` counts those of the whole timeline.

    rows: user_id and request_ts beside what else they have; those of a request follow one another. Batches are of one
    bucket and in the order of (user_id, request_ts).  columns: of the sequence, by default the definition's.
    Errors are those of `history_ends` and `history_columns`.
    """
    timeline = open_timeline(catalog, namespace, version)
    definition = timeline.definition(sequence).narrowed(columns)
    made_columns = history_columns(timeline, definition)
    user_B, at_us_B = requests_of(rows)
    for row_R, found in windows(timeline, with_arrival(definition), user_B, at_us_B):
        values = {name: history_values(found.columns, name) for name in definition.columns}
        order = np.lexsort((at_us_B[row_R], user_B[row_R]))
        start_B, length_B = found.start_R[order], found.length_R[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (np.diff(start_B) != 0) | (np.diff(length_B) != 0)
        window_B = np.cumsum(is_new) - 1
        start_W, length_W = start_B[is_new], length_B[is_new]
        batch_W = (np.cumsum(length_W) - length_W) // BATCH_TOKENS
        cuts = np.searchsorted(batch_W[window_B], np.arange(batch_W[-1] + 2)).tolist()
        for begin, until in pairwise(cuts):
            if begin == until:
                continue
            row_B, low = row_R[order[begin:until]], window_B[begin]
            part = slice(low, window_B[until - 1] + 1)
            made = with_ends(rows.take(pa.array(row_B)), found.seen_R[order[begin:until]], timeline.state.version)
            indices = pa.array((window_B[begin:until] - low).astype(np.int32))
            offsets = offsets_of(length_W[part])
            for column, name in zip(made_columns, definition.columns):
                packed = gather_windows(values[name], start_W[part], length_W[part])
                blobs = blobs_from_numpy(packed.astype(column.dtype, copy=False), offsets)
                made = made.append_column(column.name, pa.DictionaryArray.from_arrays(indices, blobs))
            yield from made.combine_chunks().to_batches()


def fetch_sequence(
    catalog: Catalog,
    namespace: str,
    user_id: int,
    sequence: str,
    columns: Sequence[str] | None = None,
    *,
    at: datetime | None = None,
    version: int | None = None,
) -> pa.Table:
    """A user's sequence as a request at this time sees it, from the timeline itself; oldest event first.

    columns: of the definition's, by default all.  at: with its zone; None: after the latest arrival.
    Raises ValueError if there is no such sequence, column or version.
    """
    timeline = open_timeline(catalog, namespace, version)
    definition = timeline.definition(sequence).narrowed(columns)
    at_us = timeline.state.arrival_us + 1 if at is None else round(at.timestamp() * 1e6)
    ((_, found),) = windows(timeline, definition, np.array([user_id], np.int64), np.array([at_us], np.int64))
    return found.events.slice(int(found.start_R[0]), int(found.length_R[0]))


def requests_of(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """user_id [R] and request_ts [R], microseconds since 1970. Raises ValueError if one is missing or null."""
    for name in (USER, REQUEST_TS):
        if name not in rows.column_names or rows.column(name).null_count:
            raise ValueError(f"requests: {USER} and {REQUEST_TS} without nulls required, found {rows.column_names}")
    at = rows.column(REQUEST_TS)
    if not pa.types.is_timestamp(at.type):
        raise ValueError(f"requests: a timestamp required as {REQUEST_TS}, found {at.type}")
    at_us = at.cast(pa.timestamp("us", at.type.tz)).cast(pa.int64())
    return rows.column(USER).to_numpy().astype(np.int64), at_us.to_numpy()


def by_bucket(user_R: np.ndarray, num_buckets: int) -> Iterator[tuple[int, np.ndarray]]:
    """The buckets of these users, and which of the requests are of each."""
    bucket_R = buckets_of(user_R, num_buckets)
    order = np.argsort(bucket_R, kind="stable")
    starts = np.flatnonzero(np.diff(bucket_R[order], prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(order)]):
        yield int(bucket_R[order[start]]), order[start:end]
