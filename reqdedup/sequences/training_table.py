"""A table to train on: rows of requests, with the histories that a sequence gives them, in the layout by request."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pyarrow as pa
from pyiceberg.catalog import Catalog

from reqdedup.schema import HISTORY_END, KEYS, REQUEST_TS, TIMELINE_VERSION, Column, EngagementSchema, Level
from reqdedup.sequences.ends import add_histories, history_columns
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage import Layout, WriteReport, replace_table

_DTYPES = {
    pa.bool_(): "bool",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.string(): "string",
    pa.large_string(): "string",
}


def write_training_table(
    catalog: Catalog,
    table: str,
    namespace: str,
    sequence: str,
    rows: pa.Table,
    *,
    labels: Sequence[str],
    request_columns: Collection[str] = (),
    columns: Sequence[str] | None = None,
    version: int | None = None,
    pointers: bool = False,
    num_buckets: int = 16,
) -> WriteReport:
    """Make `table` hold these rows with `history_<column>` for every column of a sequence, in one commit.

    rows: user_id, request_id, item_id (int64), request_ts and labels, the rows of a request next to one another.
    labels: columns of `rows` to learn.  request_columns: those with one value per request; all others are the item's.
    columns, version: as of `add_histories`.  pointers: write no history, which `PointerSource` joins as it reads; the
    buckets are then the timeline's. Errors are those of `add_histories` and `storage.replace_table`.
    """
    timeline = open_timeline(catalog, namespace, version)
    definition = timeline.definition(sequence)
    if columns is not None:
        definition = replace(definition, columns=tuple(columns))
    made = [name for name in rows.column_names if name not in (HISTORY_END, TIMELINE_VERSION)]
    schema = EngagementSchema(
        (
            *(_column(rows.schema.field(name), labels, request_columns) for name in made),
            Column(
                name=HISTORY_END, dtype="int64", level=Level.REQUEST, doc="events of the sequence before the request"
            ),
            Column(name=TIMELINE_VERSION, dtype="int32", level=Level.REQUEST, doc="version of the timeline"),
            *(() if pointers else history_columns(timeline, definition)),
        )
    )
    batches = (
        batch.select(schema.names)
        for batch in add_histories(
            catalog, namespace, sequence, rows, columns=definition.columns, version=timeline.state.version
        )
    )
    return replace_table(
        catalog,
        table,
        schema,
        Layout.BY_REQUEST,
        batches,
        num_buckets=timeline.num_buckets if pointers else num_buckets,
    )


def _column(field: pa.Field, labels: Sequence[str], request_columns: Collection[str]) -> Column:
    dtype = "timestamp" if pa.types.is_timestamp(field.type) else _DTYPES.get(field.type)
    if dtype is None:
        raise ValueError(
            f"rows: columns of {', '.join(map(str, _DTYPES))} or times required, found {field.name} of {field.type}; "
            "cast it or leave it out"
        )
    if field.name in KEYS:
        return Column(name=field.name, dtype=dtype, level=Level.KEY)
    if field.name in labels:
        return Column(name=field.name, dtype=dtype, level=Level.LABEL)
    if field.name == REQUEST_TS:
        return Column(name=field.name, dtype=dtype, level=Level.REQUEST)
    level = Level.REQUEST if field.name in request_columns else Level.ITEM
    return Column(name=field.name, dtype=dtype, level=level, nullable=True)
