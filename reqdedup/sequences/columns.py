"""Columns of the timeline as numpy arrays, which have no nulls: how each dtype says that a value is missing.

int32, int64, time    the smallest number of the type        float   NaN        bool    -1, as int8
text                  None in an array of objects            fixed[N]           N zero bytes, as void
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

POLARS_TYPES: dict[str, Any] = {
    "int32": pl.Int32,
    "int64": pl.Int64,
    "float32": pl.Float32,
    "float64": pl.Float64,
    "string": pl.String,
    "bool": pl.Boolean,
    "timestamp": pl.Datetime("us", "UTC"),
}
"""Of the dtypes of events and of what is made of them."""

PLAIN_TEXT = pl.CompatLevel.oldest()
"""Text without the views of Polars, which would bring into a file what a filter has left out, a deleted user's too."""


def numbers_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column as an array that needs no decoding: text is refused. Times are microseconds since 1970."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
        return column.fill_null(-1).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        if column.null_count:
            column = column.fill_null(int(np.iinfo(column.type.to_pandas_dtype()).min))
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        if column.null_count:
            column = column.fill_null(float("nan"))
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        if column.null_count:
            column = pc.fill_null(column, pa.scalar(b"\0" * width, column.type))
        found = np.frombuffer(column.buffers()[1], np.uint8)[
            column.offset * width : (column.offset + len(column)) * width
        ]
        return found.view(f"V{width}")
    raise ValueError(f"columns: numbers, times, bool or vectors required, found {column.type}")


def values_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of any dtype; text as an array of objects."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.to_pylist(), object)
    return numbers_of(column)


def conform(rows: pl.DataFrame, wanted: pa.Schema) -> pa.Table:
    """The rows as the table's columns; those that it has and the rows have not are null."""
    arrow = rows.to_arrow(compat_level=PLAIN_TEXT)
    columns = []
    for field in wanted:
        if field.name not in arrow.column_names:
            columns.append(pa.chunked_array([pa.nulls(len(arrow), field.type)]))
            continue
        column = arrow.column(field.name)
        if pa.types.is_fixed_size_binary(field.type) and not pa.types.is_binary(column.type):
            column = column.cast(pa.binary())
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=wanted)
