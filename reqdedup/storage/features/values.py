"""What a compute function returns, as rows of a feature table: one value per request, in the deduplicated form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.dedup.encoding import BLOB_TYPE, blobs_from_lists, element_type, sequence_lengths
from reqdedup.dedup.rows import compact_blobs, concat, each_value_once
from reqdedup.dedup.streams import REQUEST_KEY
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage.join.merge import missing_blob

Compute = Callable[[pa.RecordBatch], Any]
"""One row per request in; out: a pa.Array (of the only feature) or a dict of them by name, one value per request."""

ROW_GROUP_REQUESTS = 2**18
ROW_GROUP_BYTES = 64 * 2**20
"""A row group of the side table ends at the first of both; it covers far more requests than one of the main table."""


def input_columns(schema: EngagementSchema, compute: Compute, inputs: Sequence[str] | None) -> list[str]:
    """Columns of the main table to read: the keys and the inputs. Raises ValueError for one that differs per row."""
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


def compute_values(
    requests: Iterator[pa.RecordBatch], compute: Compute, columns: Sequence[Column]
) -> Iterator[pa.RecordBatch]:
    """The keys and these feature columns of each batch of one row per request."""
    names = [column.name for column in columns]
    for batch in requests:
        result = compute(batch)
        if result is None:
            raise ValueError(f"compute: values of {', '.join(names)} required, found None; it must return them")
        if not isinstance(result, Mapping):
            if len(columns) != 1:
                raise ValueError(f"compute: a dict of {names} required, found one {type(result).__name__}")
            result = {names[0]: result}
        if set(result) != set(names):
            raise ValueError(f"compute: {names} required, found {sorted(result)}")
        arrays = [batch.column(key) for key in REQUEST_KEY]
        arrays += [feature_array(result[column.name], column, batch.num_rows) for column in columns]
        yield pa.RecordBatch.from_arrays(arrays, names=[*REQUEST_KEY, *names])


def feature_array(values: Any, column: Column, num_requests: int) -> pa.Array:
    """What a compute function returned, as the deduplicated form of `column`. Raises ValueError if it cannot be."""
    if values is None:
        raise ValueError(f"feature {column.name}: {num_requests} values required, one per request, found None")
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if len(array) != num_requests:
        raise ValueError(f"feature {column.name}: {num_requests} values required, one per request, found {len(array)}")
    if array.null_count and not column.nullable:
        raise ValueError(f"feature {column.name}: no nulls allowed, found {array.null_count}; declare it nullable")
    try:
        if not column.is_blob:
            return _check_finite(array.cast(element_type(column)), array, column)
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


def _check_finite(narrow: pa.Array, array: pa.Array, column: Column) -> pa.Array:
    """The cast values. Raises ValueError if the type made an infinity of a number that is none, which casts allow."""
    if pa.types.is_floating(narrow.type) and pa.types.is_floating(array.type):
        overflows = pc.fill_null(pc.and_(pc.is_inf(narrow), pc.is_finite(array)), False)
        if pc.any(overflows, min_count=0).as_py():
            value = array[overflows.index(True).as_py()].as_py()
            raise ValueError(f"feature {column.name}: values of {column.dtype} required, found {value!r}")
    return narrow


def missing_values(column: Column, num_rows: int) -> pa.Array:
    """What requests have that nobody computed the feature for: null, an empty sequence, zeros of a vector."""
    if not column.is_blob:
        return pa.nulls(num_rows, element_type(column))
    values = pa.array([missing_blob(column)] if num_rows else [], pa.binary())
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), values)


def choose(mask: np.ndarray, yes: pa.Array, no: pa.Array) -> pa.Array:
    """`yes` where the mask is True, else `no`; dictionaries hold what is used."""
    num_rows = len(mask)
    if not pa.types.is_dictionary(yes.type):
        both, position = pa.concat_arrays([yes, no]), np.arange(num_rows)
        return both.take(pa.array(np.where(mask, position, position + num_rows)))
    codes = np.where(mask, yes.indices.to_numpy(), no.indices.to_numpy() + len(yes.dictionary))
    values = pa.concat_arrays([yes.dictionary, no.dictionary])
    return compact_blobs(pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), values))


def row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about a row group, each value of a dictionary once."""
    parts: list[pa.RecordBatch] = []
    for batch in batches:
        parts.append(batch)
        if (
            sum(part.num_rows for part in parts) >= ROW_GROUP_REQUESTS
            or sum(p.nbytes for p in parts) >= ROW_GROUP_BYTES
        ):
            yield each_value_once(concat(parts))
            parts = []
    if parts:
        yield each_value_once(concat(parts))
