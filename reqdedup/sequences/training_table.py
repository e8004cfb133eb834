"""A table to train on: rows of requests, with the histories that a sequence gives them, in the layout by request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import pyarrow as pa
from pyiceberg.catalog import Catalog

from reqdedup.schema import HISTORY_END, KEYS, REQUEST_TS, TIMELINE_VERSION, Column, EngagementSchema, Kind, Level
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
    """Make `table` hold these rows with a history for every column of a sequence, in one commit.

    rows: user_id, request_id, item_id (int64), request_ts and labels, the rows of a request next to one another.
    labels: columns of `rows` to learn.  request_columns: those with one value per request; all others are the item's.
    columns, version: as of `add_histories`.  pointers: write no history, which `PointerSource` joins as it reads; the
    buckets are then the timeline's. Errors are those of `add_histories` and `storage.replace_table`.
    """
    schema, batches = with_histories(
        catalog,
        namespace,
        sequence,
        table_schema(rows, labels=labels, request_columns=request_columns),
        rows.to_batches(),
        columns=columns,
        version=version,
        pointers=pointers,
    )
    if pointers:
        num_buckets = open_timeline(catalog, namespace, version).num_buckets
    return replace_table(catalog, table, schema, Layout.BY_REQUEST, batches, num_buckets=num_buckets)


def table_schema(rows: pa.Table, *, labels: Sequence[str], request_columns: Collection[str] = ()) -> EngagementSchema:
    """Schema of rows of requests; see `write_training_table`."""
    return EngagementSchema(
        tuple(
            _column(rows.schema.field(name), labels, request_columns)
            for name in rows.column_names
            if name not in (HISTORY_END, TIMELINE_VERSION)
        )
    )


def with_histories(
    catalog: Catalog,
    namespace: str,
    sequence: str,
    schema: EngagementSchema,
    batches: Iterable[pa.RecordBatch],
    *,
    columns: Sequence[str] | None = None,
    version: int | None = None,
    pointers: bool = False,
) -> tuple[EngagementSchema, Iterator[pa.RecordBatch]]:
    """Rows of requests with the histories that a sequence gives them instead of those that they have.

    schema: of the batches, which are held in memory without their sequences.  For the others and for errors see
    `write_training_table`.
    """
    timeline = open_timeline(catalog, namespace, version)
    definition = timeline.definition(sequence).narrowed(columns)
    own = [
        column
        for column in schema.columns
        if column.kind is not Kind.SEQUENCE and column.name not in (HISTORY_END, TIMELINE_VERSION)
    ]
    made = EngagementSchema(
        (
            *own,
            Column(
                name=HISTORY_END, dtype="int64", level=Level.REQUEST, doc="events of the sequence before the request"
            ),
            Column(name=TIMELINE_VERSION, dtype="int32", level=Level.REQUEST, doc="version of the timeline"),
            *(() if pointers else history_columns(timeline, definition)),
        )
    )

    def filled() -> Iterator[pa.RecordBatch]:
        rows = pa.concat_tables([_without_sequences(batch, own) for batch in batches])
        rows = rows.unify_dictionaries().combine_chunks()
        made_of = add_histories(
            catalog, namespace, sequence, rows, columns=definition.columns, version=timeline.state.version
        )
        for batch in made_of:
            yield batch.select(made.names)

    return made, filled()


def _without_sequences(batch: pa.RecordBatch, columns: Sequence[Column]) -> pa.Table:
    """These columns of a batch; of the deduplicated ones the vectors stay so."""
    found = {}
    for column in columns:
        values = batch.column(column.name)
        is_encoded = isinstance(values, pa.DictionaryArray)
        found[column.name] = values.dictionary_decode() if is_encoded and not column.is_blob else values
    return pa.table(found)


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
