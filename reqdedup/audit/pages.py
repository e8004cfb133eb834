"""The page headers of a Parquet column chunk: what no Python reader shows, and what decides how well it compresses.

Parquet compresses each page alone, so the copies of a value that share a page are the copies that compression can
save. Footers say nothing about pages. Their headers are small Thrift structs in front of each page; this reads them,
skipping the data between, so a chunk of gigabytes costs a few reads.

Source: parquet-format, src/main/thrift/parquet.thrift (PageHeader); Thrift compact protocol specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

DATA, INDEX, DICTIONARY, DATA_V2 = 0, 1, 2, 3
"""PageType of parquet.thrift."""

ENCODING_NAMES = {
    0: "PLAIN",
    2: "PLAIN_DICTIONARY",
    3: "RLE",
    4: "BIT_PACKED",
    5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY",
    7: "DELTA_BYTE_ARRAY",
    8: "RLE_DICTIONARY",
    9: "BYTE_STREAM_SPLIT",
}
DICTIONARY_ENCODINGS = ("PLAIN_DICTIONARY", "RLE_DICTIONARY")

FIRST_READ_BYTES = 256
LARGEST_HEADER_BYTES = 16 * 2**20
"""Headers carry statistics, and some writers put whole values into them."""


class ByteSource(Protocol):
    def seek(self, position: int, /) -> Any: ...
    def read(self, num_bytes: int, /) -> bytes: ...


@dataclass(frozen=True)
class Page:
    """One page: num_values counts leaf slots (an empty or null list has one); compressed_bytes include the header."""

    is_dictionary: bool
    num_values: int
    encoding: str
    compressed_bytes: int
    uncompressed_bytes: int


def read_pages(file: ByteSource, start: int, num_bytes: int, *, limit: int | None = None) -> list[Page]:
    """The pages of the chunk at [start, start + num_bytes), at most `limit` of them.

    Raises ValueError if the bytes are no page headers: a damaged or encrypted file.
    """
    pages: list[Page] = []
    position, end = start, start + num_bytes
    while position < end and (limit is None or len(pages) < limit):
        header, header_bytes = _read_header(file, position, end)
        page_type, uncompressed, compressed = header.get(1), header.get(2), header.get(3)
        if page_type not in (DATA, INDEX, DICTIONARY, DATA_V2) or compressed is None or uncompressed is None:
            raise ValueError(f"no Parquet page header at byte {position:,}")
        detail = header.get({DATA: 5, DICTIONARY: 7, DATA_V2: 8, INDEX: 6}[page_type]) or {}
        encoding = detail.get(4 if page_type == DATA_V2 else 2, 0)
        size = header_bytes + compressed
        if compressed < 0 or uncompressed < 0 or position + size > end:
            raise ValueError(f"the page at byte {position:,} does not end inside its column chunk")
        if page_type != INDEX:
            pages.append(
                Page(
                    is_dictionary=page_type == DICTIONARY,
                    num_values=detail.get(1, 0),
                    encoding=ENCODING_NAMES.get(encoding, str(encoding)),
                    compressed_bytes=size,
                    uncompressed_bytes=uncompressed,
                )
            )
        position += size
    return pages


def chunk_range(chunk: Any) -> tuple[int, int]:
    """First byte and byte count of a column chunk (pyarrow's ColumnChunkMetaData)."""
    start = chunk.data_page_offset
    # Some writers give 0 for "no dictionary page".
    if chunk.has_dictionary_page and chunk.dictionary_page_offset and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    return start, chunk.total_compressed_size


def _read_header(file: ByteSource, position: int, end: int) -> tuple[dict[int, Any], int]:
    size = FIRST_READ_BYTES
    while True:
        file.seek(position)
        data = file.read(min(size, end - position))
        try:
            return _read_struct(data, 0, depth=0)
        except IndexError:
            if size >= LARGEST_HEADER_BYTES or len(data) < size:
                raise ValueError(f"no Parquet page header at byte {position:,}") from None
            size *= 8
        except ValueError as error:
            raise ValueError(f"no Parquet page header at byte {position:,} ({error})") from error


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("not a Thrift integer")


def _read_struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    if depth > 8:
        raise ValueError("not a Thrift struct")
    fields: dict[int, Any] = {}
    field_id = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return fields, at
        delta, kind = head >> 4, head & 0x0F
        if delta:
            field_id += delta
        else:
            raw, at = _read_varint(data, at)
            field_id = (raw >> 1) ^ -(raw & 1)
        if kind in (1, 2):  # a boolean field has its value in the type
            fields[field_id] = kind == 1
        else:
            fields[field_id], at = _read_value(data, at, kind, depth)


def _read_value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):  # inside a list, or a byte
        return data[at], at + 1
    if kind in (4, 5, 6):
        raw, at = _read_varint(data, at)
        return (raw >> 1) ^ -(raw & 1), at
    if kind == 7:
        data[at + 7]  # raises IndexError where the header was cut
        return data[at : at + 8], at + 8
    if kind == 8:
        length, at = _read_varint(data, at)
        if length:
            data[at + length - 1]
        return data[at : at + length], at + length
    if kind in (9, 10):
        head = data[at]
        at += 1
        length = head >> 4
        if length == 15:
            length, at = _read_varint(data, at)
        items = []
        for _ in range(length):
            item, at = _read_value(data, at, head & 0x0F, depth + 1)
            items.append(item)
        return items, at
    if kind == 12:
        return _read_struct(data, at, depth + 1)
    raise ValueError(f"not a Thrift type: {kind}")
