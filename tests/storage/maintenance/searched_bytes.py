"""Searching all bytes that a table has on storage: raw, in unpacked manifests, in all values of all Parquet files."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def bytes_of(folder: Path, needles: Mapping[str, bytes]) -> dict[str, set[str]]:
    """Which needles are anywhere in the files of a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return search_bytes(((path.name, path.read_bytes()) for path in files), needles)


def search_bytes(files: Iterable[tuple[str, bytes]], needles: Mapping[str, bytes]) -> dict[str, set[str]]:
    """Which needles are anywhere in these files (name, content), and in what."""
    found: dict[str, set[str]] = {"raw": set(), "manifests": set(), "parquet": set()}
    for name, raw in files:
        found["raw"] |= {needle for needle, text in needles.items() if text in raw}
        if name.endswith(".avro"):
            plain = b"".join(avro_blocks(raw))
            found["manifests"] |= {needle for needle, text in needles.items() if text[:16] in plain}
        if name.endswith(".parquet"):
            values = parquet_values(raw)
            found["parquet"] |= {needle for needle, text in needles.items() if text in values}
    return found


def avro_blocks(raw: bytes):
    """The blocks of an Avro container file, unpacked (codec null or deflate)."""
    position = 4
    while (count := varint(raw, position))[0]:
        position = count[1]
        for _ in range(count[0]):
            for _ in range(2):
                length, position = varint(raw, position)
                position += length
    sync, position = raw[count[1] : count[1] + 16], count[1] + 16
    while position < len(raw):
        _, position = varint(raw, position)
        length, position = varint(raw, position)
        block = raw[position : position + length]
        yield block if b"deflate" not in raw[:4096] else zlib.decompress(block, -15)
        assert raw[position + length : position + length + 16] == sync
        position += length + 16


def varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return (value >> 1) ^ -(value & 1), position


def parquet_values(raw: bytes) -> bytes:
    """Every value of a file, whole dictionaries and statistics included, as bytes."""
    file = pq.ParquetFile(io.BytesIO(raw))
    names = [name for name in file.schema_arrow.names if pa.types.is_binary(file.schema_arrow.field(name).type)]
    parts = []
    for batch in pq.ParquetFile(io.BytesIO(raw), read_dictionary=names).iter_batches():
        for array in batch.columns:
            values = array.dictionary if pa.types.is_dictionary(array.type) else array
            parts += [buffer.to_pybytes() for buffer in values.buffers() if buffer is not None]
            if pa.types.is_list(values.type):
                parts.append(values.flatten().buffers()[-1].to_pybytes())
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for leaf in range(row_group.num_columns):
            statistics = row_group.column(leaf).statistics
            for value in (statistics.min_raw, statistics.max_raw) if statistics is not None else ():
                parts.append(
                    int(value).to_bytes(8, "little", signed=True) if isinstance(value, int) else str(value).encode()
                )
    return b"\0".join(parts)
