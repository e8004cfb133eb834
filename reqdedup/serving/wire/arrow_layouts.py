"""Where the columns of an Arrow stream stand: read once by pyarrow for every kind of stream, then by place.

A sender's streams differ in their values alone, and in the request in the schema's metadata; their heads are the same
bytes for as many candidates. So pyarrow reads a stream of these heads and of zeros, once, and is asked no more: its
calls cost several times as much as the values, and each lets another thread run.

    stream    schema (metadata: one key, its value) | head of a batch | values of fixed width, no nulls | end
    answer    the same, written: the heads by pyarrow, once for every length, values and metadata put in their places

Anything else is none of these, and `arrow` reads it with pyarrow alone, which stays the definition.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

END = b"\xff\xff\xff\xff\0\0\0\0"
MOST_HEAD_BYTES = 1 << 14
"""Of a stream's two heads each, to be remembered."""
_MARK = 0xFFFF_FFFF
_HEAD, _U32, _I32, _U16 = (struct.Struct(form) for form in ("<Ii", "<I", "<i", "<H"))


class Column(NamedTuple):
    """A column of a stream. offset: of its values behind the heads, bytes."""

    name: str
    dtype: np.dtype
    offset: int
    length: int


def columns_of(body: bytes, key: bytes) -> tuple[bytes, dict[str, np.ndarray]] | None:
    """The metadata's value and the columns by name, in their order; None for a stream that is not as above."""
    try:
        mark, size = _HEAD.unpack_from(body, 0)
        first = _HEAD.size + size
        other, size = _HEAD.unpack_from(body, first)
        second = first + _HEAD.size + size
        if not (mark == other == _MARK and _HEAD.size < first < second <= len(body) - len(END)):
            return None
        if first > MOST_HEAD_BYTES + (found := _metadata(body, key))[1] or second - first > MOST_HEAD_BYTES:
            return None
    except (struct.error, ValueError):
        return None
    begin, length = found
    end = begin + length
    if not _HEAD.size <= begin <= end <= first:
        return None
    schema_head = b"".join((body[:begin], b" " * length, body[end:first]))
    layout = _layout(schema_head, body[first:second], len(body) - second - len(END))
    if layout is None:
        return None
    columns = {one.name: np.frombuffer(body, one.dtype, one.length, second + one.offset) for one in layout}
    return body[begin:end], columns


@lru_cache(maxsize=256)
def _layout(schema_head: bytes, batch_head: bytes, num_bytes: int) -> tuple[Column, ...] | None:
    """Of a stream with these heads and so many bytes of values; None if it is none, or has other values."""
    whole = b"".join((schema_head, batch_head, bytes(num_bytes), END))
    buffer = pa.py_buffer(whole)
    try:
        messages = list(pa.ipc.MessageReader.open_stream(buffer))
        if [one.type for one in messages] != ["schema", "record batch"] or messages[1].body.size != num_bytes:
            return None
        schema = pa.ipc.read_schema(messages[0])
        batch = pa.ipc.read_record_batch(messages[1], schema)
        batch.validate(full=True)
        if len(set(schema.names)) < len(schema.names):
            return None
        columns, begin = [], buffer.address + len(schema_head) + len(batch_head)
        for name, column in zip(schema.names, batch.columns, strict=True):
            kind = column.type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or column.null_count or column.offset:
                return None
            values = column.buffers()[1]
            if values is None:
                return None
            dtype, offset = np.dtype(kind.to_pandas_dtype()), values.address - begin
            if not 0 <= offset <= num_bytes - dtype.itemsize * len(column):  # decompressed, for example
                return None
            columns.append(Column(name, dtype, offset, len(column)))
    except (pa.ArrowException, ValueError, OSError):
        return None
    return tuple(columns)


def _metadata(head: bytes, key: bytes) -> tuple[int, int]:
    """Where the value of a schema's only metadata stands, and its length. Raises ValueError if its key is another.

    A flatbuffer: Message (version, header_type, header, ...) -> Schema (endianness, fields, custom_metadata, ...) ->
    [KeyValue (key, value)], format/Message.fbs and Schema.fbs of Apache Arrow.
    """
    schema = _follow(head, field(head, _follow(head, _HEAD.size), 2))
    pairs = _follow(head, field(head, schema, 2))
    if _U32.unpack_from(head, pairs)[0] != 1:
        raise ValueError("one pair of metadata required")
    pair = _follow(head, pairs + 4)
    name = _follow(head, field(head, pair, 0))
    if head[name + 4 : name + 4 + _U32.unpack_from(head, name)[0]] != key:
        raise ValueError("another key")
    value = _follow(head, field(head, pair, 1))
    return value + 4, _U32.unpack_from(head, value)[0]


def _follow(head: bytes, place: int | None) -> int:
    """What an offset of a flatbuffer points to."""
    if place is None:
        raise ValueError("a field that is left out")
    found: int = place + _U32.unpack_from(head, place)[0]
    return found


def field(head: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table stands, None if it is left out."""
    vtable = table - _I32.unpack_from(head, table)[0]
    (size,) = _U16.unpack_from(head, vtable)
    place = 4 + 2 * number
    offset = _U16.unpack_from(head, vtable + place)[0] if place < size else 0
    return table + offset if offset else None


def stream_of(columns: Mapping[str, np.ndarray], key: bytes, value: bytes) -> bytes:
    """The stream of float32 columns of one length, at least one, with this metadata: pyarrow's bytes."""
    count = len(next(iter(columns.values())))
    before, behind, padding = _heads(tuple(columns), count, key, len(value))
    values = [part for one in columns.values() for part in (one.tobytes(), padding)]
    return b"".join((before, value, behind, *values, END))


@lru_cache(maxsize=1024)
def _heads(names: tuple[str, ...], count: int, key: bytes, length: int) -> tuple[bytes, bytes, bytes]:
    """What stands before the metadata's value, and behind it up to the values; and behind each column."""
    schema = pa.schema([(name, pa.float32()) for name in names], {key: b" " * length})
    head = schema.serialize().to_pybytes()
    begin, _ = _metadata(head, key)
    arrays = [pa.array(np.zeros(count, np.float32))] * len(names)
    batch = pa.record_batch(arrays, schema=schema).serialize().to_pybytes()
    padded = -(-4 * count // 8) * 8
    batch_head = batch[: len(batch) - padded * len(names)]
    return head[:begin], head[begin + length :] + batch_head, bytes(padded - 4 * count)
