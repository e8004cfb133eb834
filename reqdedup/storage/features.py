"""Backfill of request features: computed once per request, written beside the main table, readable at once.

    main table, bucket by bucket -> first row of every request -> compute -> side table, same buckets and order

The main table is read, never written. A feature costs its own bytes and the two keys, which are delta-encoded; a new
column in the main table would cost every byte of it again. `bucket_join(main, side)` then reads both as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.encoding import BLOB_TYPE, blobs_from_lists, element_type, sequence_lengths
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage.buckets import SortedTable
from reqdedup.storage.commit import StagedFiles
from reqdedup.storage.feature_table import FeatureSchema, as_engagement_schema, feature_schema
from reqdedup.storage.keys import run_starts
from reqdedup.storage.layout import table_buckets
from reqdedup.storage.reader import TableSource
from reqdedup.storage.source import take_rows
from reqdedup.storage.streams import REQUEST_KEY, Cursor, concat, key_columns

Compute = Callable[[pa.RecordBatch], Any]
"""One row per request in; out: a pa.Array (of the only feature) or a dict of them by name, one value per request."""

ROW_GROUP_REQUESTS = 2**18
ROW_GROUP_BYTES = 64 * 2**20
"""A row group of the side table ends at the first of both; it covers far more requests than one of the main table."""

MAIN_TABLE, MAIN_SNAPSHOT = "reqdedup.main-table", "reqdedup.main-snapshot"
"""Snapshot properties: what the features were computed from."""


@dataclass(frozen=True, kw_only=True)
class FeatureReport:
    """What a backfill wrote.

    requests: one value of each feature for each.  files: new data files.
    bytes: of these files, keys, footers and all.
    minimum_bytes: of the feature values alone, in the same codec: what any store would have to write.
    key_bytes: of user_id and request_id.  snapshot_id: of the commit; None where there was nothing to commit.
    """

    requests: int
    files: int
    bytes: int
    minimum_bytes: int
    key_bytes: int
    seconds: float
    snapshot_id: int | None

    @property
    def ratio_to_minimum(self) -> float:
        """Bytes written per byte of values; the keys weigh little beside an embedding, and much beside a small count."""
        return self.bytes / self.minimum_bytes if self.minimum_bytes else float("nan")


def add_request_feature(
    main_table: Table,
    side_table: Table,
    compute: Compute,
    *,
    inputs: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureReport:
    """Compute the features of `side_table` for every request of `main_table` and write them in one commit.

    compute: called once per batch of some thousand requests with one row each: user_id, request_id and the `inputs`,
        blobs as dictionaries (`numpy_from_blobs` opens them). Blob features may be returned as lists or as blobs.
    inputs: columns of the main table that `compute` needs; by default what `compute.inputs(schema)` says where it has
        that method (as `recent_event_counts` does), else all request-level columns.
    progress: called with buckets done and buckets in total.

    An earlier version of the features is replaced; whoever reads sees the old or the new one, whole. The snapshot
    records the main table's snapshot that was read. Raises ValueError for tables that do not fit together and for
    results that are not one valid value per request; RuntimeError where another writer was faster. Then nothing changed.
    """
    started = time.monotonic()
    schema, source = feature_schema(side_table), TableSource(main_table)
    main = SortedTable(main_table, source, REQUEST_KEY)
    if table_buckets(side_table) != main.num_buckets:
        raise ValueError(
            f"{'.'.join(side_table.name())}: {main.num_buckets} buckets as in {main.name} required, found "
            f"{table_buckets(side_table)}; create it again with create_feature_table"
        )
    columns = _input_columns(source.schema, compute, inputs)
    side_table.refresh()
    num_requests = 0
    with StagedFiles(side_table, as_engagement_schema(schema)) as files:
        for bucket in range(main.num_buckets):
            batches = main.stream(bucket, main.num_buckets, columns)
            for rows in _row_groups(_features(batches, compute, schema, main.name)):
                num_requests += files.write(bucket, pa.Table.from_batches([rows]), target_bytes=2**63)
            files.close_file()
            if progress is not None:
                progress(bucket + 1, main.num_buckets)
        files.verify(num_rows=num_requests, num_requests=num_requests)
        properties = {MAIN_TABLE: main.name, MAIN_SNAPSHOT: str(source.snapshot_id)}
        snapshot_id = files.commit(replace=True, properties=properties)
        data_files = files.data_files
    column_bytes = {column.name: 0 for column in schema.columns}
    for data_file in data_files:
        for field_id, size in data_file.column_sizes.items():
            column_bytes[side_table.schema().find_column_name(field_id) or ""] += size
    return FeatureReport(
        requests=num_requests,
        files=len(data_files),
        bytes=sum(data_file.file_size_in_bytes for data_file in data_files),
        minimum_bytes=sum(column_bytes[column.name] for column in schema.features),
        key_bytes=sum(column_bytes[name] for name in REQUEST_KEY),
        seconds=time.monotonic() - started,
        snapshot_id=snapshot_id,
    )


def first_rows(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[pa.RecordBatch]:
    """One row per request, the first, of batches in request order; `name` of the table, for errors."""
    cursor = Cursor(batches, REQUEST_KEY, name)
    while cursor.fill():
        batch = cursor.take()
        yield take_rows(batch, run_starts(key_columns(batch, REQUEST_KEY)))


def _input_columns(schema: EngagementSchema, compute: Compute, inputs: Sequence[str] | None) -> list[str]:
    if inputs is None:
        asked = getattr(compute, "inputs", None)
        inputs = asked(schema) if callable(asked) else [column.name for column in schema.request_columns]
    unknown = sorted(set(inputs) - set(schema.names))
    if unknown:
        raise ValueError(f"inputs: no such columns: {', '.join(unknown)}; there are {', '.join(schema.names)}")
    per_row = [name for name in inputs if schema[name].level in (Level.ITEM, Level.LABEL)]
    if per_row:
        raise ValueError(f"inputs: request-level columns required, found {', '.join(per_row)}, which differ per row")
    return [*REQUEST_KEY, *(name for name in inputs if name not in REQUEST_KEY)]


def _features(
    batches: Iterator[pa.RecordBatch], compute: Compute, schema: FeatureSchema, name: str
) -> Iterator[pa.RecordBatch]:
    for requests in first_rows(batches, name):
        result = compute(requests)
        if not isinstance(result, Mapping):
            if len(schema.features) != 1:
                raise ValueError(
                    f"compute: a dict of {[c.name for c in schema.features]} required, found one {type(result).__name__}"
                )
            result = {schema.features[0].name: result}
        if set(result) != {column.name for column in schema.features}:
            raise ValueError(f"compute: {[c.name for c in schema.features]} required, found {sorted(result)}")
        arrays = [requests.column(key) for key in REQUEST_KEY]
        arrays += [feature_array(result[column.name], column, requests.num_rows) for column in schema.features]
        yield pa.RecordBatch.from_arrays(arrays, names=list(schema.names))


def feature_array(values: Any, column: Column, num_requests: int) -> pa.Array:
    """What a compute function returned, as the deduplicated form of `column`. Raises ValueError where it cannot be."""
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if len(array) != num_requests:
        raise ValueError(f"feature {column.name}: {num_requests} values required, one per request, found {len(array)}")
    if array.null_count and not column.nullable:
        raise ValueError(f"feature {column.name}: no nulls allowed, found {array.null_count}; declare it nullable")
    try:
        if not column.is_blob:
            return array.cast(element_type(column))
        if (
            pa.types.is_list(array.type)
            or pa.types.is_large_list(array.type)
            or pa.types.is_fixed_size_list(array.type)
        ):
            array = blobs_from_lists(array, column)
        array = array if array.type == BLOB_TYPE else array.cast(pa.binary()).dictionary_encode()
        lengths = sequence_lengths(array, column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"feature {column.name}: {column.kind.value} of {column.dtype} required: {error}") from error
    if column.kind is Kind.VECTOR and (lengths != column.width).any():
        raise ValueError(f"feature {column.name}: {column.width} elements each required, found {set(lengths.tolist())}")
    return array


def _row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about a row group."""
    parts: list[pa.RecordBatch] = []
    for batch in batches:
        parts.append(batch)
        if (
            sum(part.num_rows for part in parts) >= ROW_GROUP_REQUESTS
            or sum(p.nbytes for p in parts) >= ROW_GROUP_BYTES
        ):
            yield concat(parts)
            parts = []
    if parts:
        yield concat(parts)
