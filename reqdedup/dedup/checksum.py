"""What a table holds, as one number: a checksum over rows that no order, layout or dictionary changes.

Tables of any layout that hold the same rows and values have the same checksum, in any process and on any machine.
A number is hashed by `mix`, bytes by MurmurHash3 (x64, the first 64 of 128 bits), which takes a fifth of BLAKE2b's time
for a sequence: it finds what went wrong, not what somebody forged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import mmh3
import numpy as np
import pyarrow as pa

from reqdedup.arrays.hashing import mix
from reqdedup.arrays.keys import run_starts
from reqdedup.dedup.source import BatchSource
from reqdedup.dedup.stored import is_binary, is_nested, is_text, packed

_NULL = np.uint64(0x9AE16A3B2F90404F)
_NAN = np.uint64(0xC3A5C85C97CB3127)
_BITS = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


@dataclass(frozen=True)
class ContentChecksum:
    """rows: how many.  checksum: the sum over rows of a 64-bit hash of all their values, modulo 2^64."""

    rows: int = 0
    checksum: int = 0

    def __add__(self, other: ContentChecksum) -> ContentChecksum:
        """Of the rows of both."""
        return ContentChecksum(self.rows + other.rows, (self.checksum + other.checksum) % 2**64)

    def __str__(self) -> str:
        return f"{self.checksum:016x} over {self.rows:,} rows"


class RunningChecksum:
    """`content_checksum` of batches as they pass by."""

    def __init__(self) -> None:
        self._rows, self._total = 0, 0

    def through(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, each counted before it is handed on."""
        for batch in batches:
            self.add(batch.num_rows, batch_hashes(batch))
            yield batch

    def add(self, num_rows: int, hashes: np.ndarray) -> None:
        """Count rows whose `row_hashes` these are."""
        self._rows += num_rows
        self._total = (self._total + int(np.sum(hashes, dtype=np.uint64))) % 2**64

    def take(self, other: ContentChecksum) -> None:
        """Count rows that were counted elsewhere."""
        self._rows, self._total = self._rows + other.rows, (self._total + other.checksum) % 2**64

    @property
    def so_far(self) -> ContentChecksum:
        return ContentChecksum(self._rows, self._total)


def content_checksum(source: BatchSource) -> ContentChecksum:
    """Checksum of all rows and values of the source, independent of order, layout and dictionaries.

    One changed, missing or repeated row changes it; a blob is hashed once per distinct value of a batch. Equal rows in
    equal number give equal checksums in any process and on any machine.
    """
    running = RunningChecksum()
    for _ in running.through(source.batches()):
        pass
    return running.so_far


def batch_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """`row_hashes` of all values of a batch, [N] uint64. A value of many rows is hashed once, as far as it is cheap."""
    total = np.zeros(batch.num_rows, np.uint64)
    for name, array in zip(batch.schema.names, batch.columns):
        own = bytes_hash(name.encode())
        if pa.types.is_dictionary(array.type):
            total += mix(_blob_hashes(array.dictionary) ^ own)[array.indices.to_numpy()]
        elif (few := _few(array)) is not None:
            bits, index = few
            total += mix(mix(bits) ^ own)[index]
        elif (starts := _runs(array)) is not None:
            of_run = mix(value_hashes(array.take(pa.array(starts))) ^ own)
            total += np.repeat(of_run, np.diff(np.append(starts, len(array))))
        else:
            total += mix(value_hashes(array) ^ own)
    return mix(total)


def _few(array: pa.Array) -> tuple[np.ndarray, np.ndarray] | None:
    """The whole numbers from an array's lowest to its highest, [K] uint64, and which of them each value is, [N]; None
    if they are not far fewer than its values, and for nulls and other values."""
    if not len(array) or array.null_count or not pa.types.is_integer(array.type):
        return None
    numbers = array.to_numpy()
    low, high = int(numbers.min()), int(numbers.max())
    if 4 * (high - low) >= len(array):
        return None
    bits = np.arange(high - low + 1, dtype=np.uint64) + np.uint64(low % 2**64)
    return bits, np.subtract(numbers, low, dtype=np.intp)


def _runs(array: pa.Array) -> np.ndarray | None:
    """Where stretches of one number begin, by its bits; None if they are short, and for nulls and other values."""
    if array.null_count or not (pa.types.is_primitive(array.type) and array.type.bit_width in _BITS):
        return None
    starts = run_starts([array.view(_BITS[array.type.bit_width]).to_numpy()])
    return starts if 2 * len(starts) < len(array) else None


def row_hashes(names: Iterable[str], hashes: Iterable[np.ndarray], num_rows: int) -> np.ndarray:
    """A 64-bit hash of each row, [N] uint64, from the hashes of its columns' values; the order of
    columns is no matter."""
    total = np.zeros(num_rows, np.uint64)
    for name, values in zip(names, hashes):
        total += mix(values ^ bytes_hash(name.encode()))
    return mix(total)


def value_hashes(array: pa.Array) -> np.ndarray:
    """A 64-bit hash of each value, [N] uint64; the same for a value however it is encoded."""
    if pa.types.is_dictionary(array.type):
        return _blob_hashes(array.dictionary)[array.indices.to_numpy()]
    if is_nested(array.type):
        return _nested_hashes(array)
    if pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary())
    if is_text(array.type) or is_binary(array.type):
        encoded = array.dictionary_encode()
        hashes = np.append(_blob_hashes(encoded.dictionary.cast(pa.large_binary())), _NULL)
        return hashes[encoded.indices.fill_null(len(hashes) - 1).to_numpy()]
    if pa.types.is_floating(array.type):
        numbers = array.cast(pa.float64()).fill_null(0).to_numpy()
        bits = np.where(np.isnan(numbers), _NAN, numbers.view(np.uint64))
    elif pa.types.is_boolean(array.type):
        bits = array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint64)
    elif pa.types.is_decimal(array.type):
        words = np.frombuffer(_compact(array).buffers()[1], np.uint64)[: 2 * len(array)].reshape(-1, 2)
        bits = words[:, 0] ^ mix(words[:, 1])
    else:
        whole = array.cast(pa.int32()) if pa.types.is_date(array.type) else array
        bits = whole.cast(pa.int64()).fill_null(0).to_numpy().view(np.uint64)
    hashes = mix(bits)
    if array.null_count:
        hashes = np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, hashes)
    return hashes


def _nested_hashes(array: pa.Array) -> np.ndarray:
    """Of lists and maps by their elements in order, of structs by their fields in order; no null is an empty one."""
    if pa.types.is_struct(array.type):
        hashes = np.zeros(len(array), np.uint64)
        for number, field in enumerate(array.flatten(), start=1):
            hashes += mix(value_hashes(field) + np.uint64(number))
    else:
        elements, offsets = packed(array)
        lengths = np.diff(offsets)
        places = (np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + 1).astype(np.uint64)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(value_hashes(elements) + mix(places)))])
        hashes = sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64)
    return np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, mix(hashes))


def _compact(array: pa.Array) -> pa.Array:
    """The same decimals from the start of a buffer, zero for null."""
    return pa.concat_arrays([array.fill_null(0)])


def _blob_hashes(blobs: pa.Array) -> np.ndarray:
    if not len(blobs):
        return np.zeros(0, np.uint64)
    blobs = blobs.cast(pa.large_binary())
    _, ends, data = blobs.buffers()
    offsets = np.frombuffer(ends, np.int64, len(blobs) + 1, 8 * blobs.offset).tolist()
    view = memoryview(data) if data is not None else b""
    digests = [mmh3.mmh3_x64_128_digest(view[start:end]) for start, end in pairwise(offsets)]
    return np.frombuffer(b"".join(digests), "<u8")[::2]


def bytes_hash(value: bytes) -> np.uint64:
    return np.frombuffer(mmh3.mmh3_x64_128_digest(value), "<u8")[0]
