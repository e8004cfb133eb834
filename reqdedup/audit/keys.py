"""A stable 64-bit identity for key values of any type, the same in any process, file order and integer width.

Integers of 32 and 64 bits that are equal get equal hashes; so do strings and their dictionary form. Identity by hash
means that two of n requests collide with probability n^2 / 2^65: below one in a million for four million requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.hashing import mix


def hash_keys(columns: Sequence[pa.Array]) -> np.ndarray:
    """Hash of each row's composite key, [N] uint64; rows with a null in any column get an arbitrary one."""
    combined = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        combined = mix(combined ^ hash_values(column))
    return combined


def null_keys(columns: Sequence[pa.Array]) -> np.ndarray:
    """True if any column of the key is null, [N] bool."""
    missing = np.zeros(len(columns[0]), bool)
    for column in columns:
        if column.null_count:
            missing |= column.is_null().to_numpy(zero_copy_only=False)
    return missing


def hash_values(array: pa.Array) -> np.ndarray:
    """Hash of each value, [N] uint64. Raises ValueError for types that cannot be a key: floats, lists, structs."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        values = hash_values(array.dictionary) if len(array.dictionary) else np.zeros(1, np.uint64)
        return values[pc.fill_null(array.indices, 0).to_numpy(zero_copy_only=False)]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        whole = pc.fill_null(array.cast(pa.uint64() if pa.types.is_uint64(kind) else pa.int64()), 0)
        return mix(whole.to_numpy(zero_copy_only=False).view(np.uint64))
    if pa.types.is_temporal(kind):
        return hash_values(array.view(pa.int32() if kind.bit_width == 32 else pa.int64()))
    if pa.types.is_decimal(kind):
        return hash_values(array.cast(pa.string()))
    if pa.types.is_fixed_size_binary(kind):
        return hash_values(array.cast(pa.binary()))
    if (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary_view(kind)
    ):
        return _hash_bytes(array)
    raise ValueError(f"a key must be of integers, strings, binary, decimals or times, found {kind}")


def _hash_bytes(array: pa.Array) -> np.ndarray:
    """Eight bytes at a time over all values at once: as many steps as the longest value has words."""
    encoded = (
        array.cast(pa.large_binary())
        if not pa.types.is_string_view(array.type)
        else array.cast(pa.large_string()).cast(pa.large_binary())
    )
    if len(encoded) == 0:
        return np.zeros(0, np.uint64)
    _, offset_buffer, data_buffer = encoded.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[encoded.offset : encoded.offset + len(encoded) + 1]
    data = (
        np.frombuffer(data_buffer, np.uint8) if data_buffer is not None and data_buffer.size else np.zeros(0, np.uint8)
    )
    start, lengths = offsets[:-1], np.diff(offsets)
    padded = np.concatenate([data[: offsets[-1]], np.zeros(8, np.uint8)])
    hashes = mix(lengths.astype(np.uint64))
    alive = np.flatnonzero(lengths > 0)
    done = 0
    while len(alive):
        at = start[alive] + done
        word = np.zeros(len(alive), np.uint64)
        left = lengths[alive] - done
        for byte in range(8):
            inside = left > byte
            word |= np.where(inside, padded[at + byte], 0).astype(np.uint64) << np.uint64(8 * byte)
        hashes[alive] = mix(hashes[alive] ^ word)
        done += 8
        alive = alive[left > 8]
    return hashes
