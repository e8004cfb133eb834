"""The deduplicated form of a log in memory: rows that point at request-level blobs.

A *deduplicated batch* is a `pa.RecordBatch` with one row per impression. Scalars are plain columns. Every sequence or
vector is a `dictionary<int32, binary>` column: the values are the distinct sequences as little-endian bytes, the
indices say which of them each row has. That is the form in which batches travel from the logs to the writer, from the
reader through join and sampling to the loader; it is also how `Layout.BY_REQUEST` stores them, so the indices of a
Parquet page reach the kernel untouched.

    user_id  request_id  item_id  history_item_id: indices, values
    7        70          1        0                0: [a b c] as 24 bytes
    7        70          2        0
    9        90          1        1                1: [d] as 8 bytes

Decoding a blob anywhere is one line: `np.frombuffer(blob, "<i8")`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.ranges import offsets_of
from reqdedup.dedup.stored import arrow_type
from reqdedup.schema import NUMBER_WIDTH_BYTES, Column, EngagementSchema, Kind, Level

BLOB_TYPE = pa.dictionary(pa.int32(), pa.binary())

MAX_BINARY_BYTES = 2**31 - 2
"""Of all values of one binary or string array, which has 32-bit offsets; whatever would be longer
is cut into several."""


def element_type(column: Column) -> pa.DataType:
    """Arrow type of a scalar, or of one element of a sequence or vector."""
    return arrow_type(column.dtype)


def exact_cast(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """The same values as another type. Raises ValueError if one of them would be another, or not fit."""
    cast = array.cast(wanted)
    if pa.types.is_floating(array.type) and pa.types.is_floating(wanted) and wanted.bit_width < array.type.bit_width:
        is_same = pc.or_(pc.equal(cast.cast(array.type), array), pc.is_nan(array))
        if not pc.all(is_same, min_count=0).as_py():
            row = is_same.index(False).as_py()
            raise ValueError(f"the value {array[row].as_py()!r} does not fit into {wanted}")
    return cast


def widened(batch: pa.RecordBatch, schema: EngagementSchema) -> pa.RecordBatch:
    """The batch with int32 as int64 and float32 as float64 in the scalars that the schema has so."""
    wider = {pa.int32(): "int64", pa.float32(): "float64"}
    names, arrays = batch.schema.names, batch.columns
    narrow = [i for i, name in enumerate(names) if name in schema and schema[name].dtype == wider.get(arrays[i].type)]
    for i in narrow:
        arrays[i] = arrays[i].cast(element_type(schema[names[i]]))
    return pa.RecordBatch.from_arrays(arrays, names=names) if narrow else batch


def deduplicated_schema(schema: EngagementSchema) -> pa.Schema:
    """Arrow schema of a deduplicated batch: scalars plain, sequences and vectors as dictionary-encoded blobs."""
    return pa.schema(
        [
            pa.field(
                column.name,
                BLOB_TYPE if column.is_blob else element_type(column),
                nullable=column.nullable,
            )
            for column in schema.columns
        ]
    )


def list_schema(schema: EngagementSchema) -> pa.Schema:
    """Arrow schema of fat rows: every sequence or vector a plain list, repeated on each row."""
    return pa.schema(
        [
            pa.field(
                column.name,
                pa.list_(pa.field("element", element_type(column), nullable=False))
                if column.is_blob
                else element_type(column),
                nullable=column.nullable,
            )
            for column in schema.columns
        ]
    )


def blobs_from_numpy(values: np.ndarray, offsets: np.ndarray) -> pa.BinaryArray:
    """Blobs of a packed numeric array, `len(offsets) - 1` of them, without copying the values.

    values: [T] numbers of 4 or 8 bytes, little-endian; offsets: [N + 1] in elements, offsets[0] == 0.
    Raises ValueError if the bytes pass MAX_BINARY_BYTES: make smaller batches.
    """
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    end_bytes = int(offsets[-1]) * values.itemsize
    if end_bytes > MAX_BINARY_BYTES:
        raise ValueError(
            f"one batch of blobs holds at most {MAX_BINARY_BYTES:,} bytes, found {end_bytes:,}; make smaller batches"
        )
    offset_bytes = (np.asarray(offsets, dtype=np.int64) * values.itemsize).astype(np.int32)
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offset_bytes), pa.py_buffer(values)]
    )


def take_blobs(blobs: pa.BinaryArray, positions: np.ndarray) -> pa.BinaryArray | pa.LargeBinaryArray:
    """The blobs at these positions, [N] integers, one after the other; large_binary where they pass MAX_BINARY_BYTES.

    Many positions may share a blob, so that a small dictionary can lay out to more than Arrow's 32-bit offsets count.
    """
    lengths = pc.binary_length(blobs).to_numpy(zero_copy_only=False)
    if int(lengths[positions].sum(dtype=np.int64)) > MAX_BINARY_BYTES:
        blobs = blobs.cast(pa.large_binary())
    return blobs.take(pa.array(positions))


def numpy_from_blobs(blobs: pa.BinaryArray | pa.LargeBinaryArray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Packed values [T] and offsets [N + 1] (elements, offsets[0] == 0) of blobs, values without a copy.

    dtype: one of int32, int64, float32, float64. Raises ValueError for a blob that is no whole number of elements.
    """
    if blobs.null_count:
        raise ValueError(f"blobs cannot be null, found {blobs.null_count} nulls; store an empty value instead")
    width = NUMBER_WIDTH_BYTES[dtype]
    _, offset_buffer, value_buffer = blobs.buffers()
    offset_dtype = np.int64 if pa.types.is_large_binary(blobs.type) else np.int32
    if len(blobs) == 0 or offset_buffer is None:
        return np.empty(0, dtype), np.zeros(len(blobs) + 1, np.int64)
    bounds = np.frombuffer(offset_buffer, offset_dtype)[blobs.offset : blobs.offset + len(blobs) + 1]
    start, end = int(bounds[0]), int(bounds[-1])
    offset_bytes = bounds.astype(np.int64) - start
    if np.any(offset_bytes % width):
        raise ValueError(f"a blob of {dtype} must be a multiple of {width} bytes; the column holds something else")
    little_endian = np.dtype(dtype).newbyteorder("<")
    if value_buffer is None or end == start:
        return np.empty(0, little_endian), offset_bytes // width
    if start % width:  # an unaligned slice of a shared buffer: copy, since views must be aligned for torch
        values = np.frombuffer(bytes(value_buffer[start:end]), little_endian)
    else:
        values = np.frombuffer(value_buffer, np.uint8)[start:end].view(little_endian)
    return values, offset_bytes // width


def lists_from_blobs(blobs: pa.BinaryArray, column: Column) -> pa.ListArray:
    """The same values as a plain Arrow list array, values without a copy."""
    values, offsets = numpy_from_blobs(blobs, column.dtype)
    if len(values) > 2**31 - 1:
        raise ValueError(
            f"column {column.name}: one list array holds at most {2**31 - 1:,} elements, found {len(values):,}"
        )
    list_type = pa.list_(pa.field("element", element_type(column), nullable=False))
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), pa.array(values, type=element_type(column)), type=list_type
    )


def blobs_from_lists(lists: pa.ListArray, column: Column) -> pa.BinaryArray:
    """Blobs of a plain list array (a fixed-size or large list too); the inverse of `lists_from_blobs`."""
    if lists.null_count:
        raise ValueError(f"column {column.name}: lists cannot be null, found {lists.null_count}; store an empty list")
    if pa.types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.list_(lists.type.value_type))
    values = lists.flatten()
    if values.null_count:
        raise ValueError(f"column {column.name}: list elements cannot be null, found {values.null_count}")
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    offsets = offsets_of(lengths)
    return blobs_from_numpy(exact_cast(values, element_type(column)).to_numpy(), offsets)


def expand_to_lists(batch: pa.RecordBatch, schema: EngagementSchema) -> pa.RecordBatch:
    """Fat rows of a deduplicated batch: every row gets its own copy of every list. Only control tables want this."""
    columns = []
    for column in schema.columns:
        array = batch.column(column.name)
        if column.is_blob:
            array = lists_from_blobs(array.dictionary, column).take(array.indices)
        columns.append(array)
    return pa.RecordBatch.from_arrays(columns, schema=list_schema(schema))


def sequence_lengths(array: pa.DictionaryArray, column: Column) -> np.ndarray:
    """Elements of each row's value, [B] int64, from the blob lengths alone."""
    _, offsets = numpy_from_blobs(array.dictionary, column.dtype)
    return np.diff(offsets)[array.indices.to_numpy()]


def check_deduplicated(batch: pa.RecordBatch, schema: EngagementSchema) -> None:
    """Raise ValueError if `batch` is not a deduplicated batch of `schema`, naming the first column that differs."""
    if not isinstance(batch, pa.RecordBatch):
        raise ValueError(
            f"batch: a pa.RecordBatch required, found {type(batch).__name__}; of a table, its to_batches()"
        )
    for column in schema.columns:
        index = batch.schema.get_field_index(column.name)
        wanted = BLOB_TYPE if column.is_blob else element_type(column)
        if index < 0:
            raise ValueError(f"batch: column {column.name} ({wanted}) required, found only {batch.schema.names}")
        array = batch.column(index)
        if array.type != wanted:
            is_text_id = column.level is Level.KEY and array.type in (pa.string(), pa.large_string())
            hint = "; ids of text become numbers with `reqdedup convert`, or with hash_string" if is_text_id else ""
            raise ValueError(f"batch: column {column.name} must be {wanted}, found {array.type}{hint}")
        if not column.nullable and array.null_count:
            raise ValueError(f"batch: column {column.name} must not be null, found {array.null_count} nulls")
        if column.kind is Kind.VECTOR:
            _, offsets = numpy_from_blobs(array.dictionary, column.dtype)
            if np.all(np.diff(offsets) == column.width):
                continue
            lengths = sequence_lengths(array, column)
            if np.any(lengths != column.width):  # and not only those of values that no row has
                raise ValueError(
                    f"batch: column {column.name} must have {column.width} elements a row, found "
                    f"{sorted(set(lengths))[:5]}"
                )
