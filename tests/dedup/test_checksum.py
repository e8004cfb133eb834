"""A checksum of rows is the same however they are batched, repeated or encoded, and is that of a plain loop over them."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.arrays import hashing
from reqdedup.dedup.checksum import ContentChecksum, RunningChecksum
from tests.storage.small_log import make_log, to_batches

MASK = 2**64 - 1


def mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def turned(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & MASK


def stirred(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & MASK
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def murmur(data: bytes) -> int:
    """The first 64 of the 128 bits of MurmurHash3 for x64, by A. Appleby's description."""
    c1, c2, h1, h2 = 0x87C37B91114253D5, 0x4CF5AD432745937F, 0, 0
    padded = data + bytes(-len(data) % 16)
    for start in range(0, len(padded), 16):
        k1, k2 = struct.unpack_from("<QQ", padded, start)
        h1 ^= turned(k1 * c1 & MASK, 31) * c2 & MASK
        h2_before, k2 = h2, turned(k2 * c2 & MASK, 33) * c1 & MASK
        if start + 16 <= len(data):
            h1 = ((turned(h1, 27) + h2_before) * 5 + 0x52DCE729) & MASK
            h2 = ((turned(h2_before ^ k2, 31) + h1) * 5 + 0x38495AB5) & MASK
        else:
            h2 ^= k2
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & MASK
    h1, h2 = stirred(h1), stirred(h2 + h1 & MASK)
    return (h1 + h2) & MASK


def hash_of(value: object, kind: pa.DataType) -> int:
    if value is None:
        return 0x9AE16A3B2F90404F
    if isinstance(value, str):
        return murmur(value.encode())
    if isinstance(value, bytes):
        return murmur(value)
    if pa.types.is_floating(kind):
        return mix(0xC3A5C85C97CB3127 if value != value else int.from_bytes(struct.pack("<d", value), "little"))
    return mix(int(value) & MASK)


def plain(batch: pa.RecordBatch) -> ContentChecksum:
    total = 0
    for row in range(batch.num_rows):
        hashed = 0
        for name, array in zip(batch.schema.names, batch.columns):
            kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
            value = array[row].value if pa.types.is_timestamp(kind) else array[row].as_py()
            hashed += mix(hash_of(value, kind) ^ murmur(name.encode()))
        total += mix(hashed & MASK)
    return ContentChecksum(batch.num_rows, total & MASK)


def of(batches) -> ContentChecksum:
    running = RunningChecksum()
    for _ in running.through(batches):
        pass
    return running.so_far


AWKWARD = pa.RecordBatch.from_pydict(
    {
        "repeated": pa.array([7] * 40 + [-1] * 9, pa.int64()),
        "zeros": pa.array([0.0] * 20 + [-0.0] * 20 + [float("nan")] * 9, pa.float32()),
        "missing": pa.array([None] * 30 + [0] * 19, pa.int32()),
        "short": pa.array([1, 1, 2] * 16 + [2], pa.int16()),
        "truth": pa.array([True] * 48 + [False]),
        "text": pa.array(["a", "", None] * 16 + ["a"]),
        "blob": pa.array([b"", b"xy", b"x" * 99] * 16 + [b""]).dictionary_encode(),
        "lowest": pa.array([-128, 127] + [-128] * 47, pa.int8()),
        "highest": pa.array([2**63 - 1, 2**63 - 2] * 24 + [2**63 - 1], pa.int64()),
        "far": pa.array([-(2**63), 2**63 - 1] * 24 + [0], pa.int64()),
    }
)


@pytest.mark.parametrize("batch", [AWKWARD, AWKWARD.slice(3, 30), AWKWARD.slice(48), *to_batches(make_log()[:4])])
def test_it_is_that_of_a_plain_loop(batch):
    assert of([batch]) == plain(batch)
    assert of([batch.slice(0, 1), batch.slice(1)]) == plain(batch)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 4096])
def test_bytes_of_every_length(size):
    data = np.random.default_rng(size).bytes(size)
    batch = pa.RecordBatch.from_pydict({"x": pa.array([data, data[:-1] + b"!"]).dictionary_encode()})
    assert of([batch]) == plain(batch)


def test_long_arrays_are_mixed_as_short_ones_are():
    numbers = np.random.default_rng(0).integers(0, 2**63, 3 * hashing.MIXED_TOGETHER + 5).astype(np.uint64)
    mixed = hashing.mix(numbers)
    assert [mix(int(one)) for one in numbers[::5000]] == mixed[::5000].tolist()
    square = np.asfortranarray(numbers[: 4 * 5000].reshape(4, 5000))
    assert np.array_equal(hashing.mix(square), mixed[: 4 * 5000].reshape(4, 5000))
