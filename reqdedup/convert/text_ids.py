"""Ids of keys that are texts: hashes, and the keys of items, whose ids a vocabulary gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.hashing import mix
from reqdedup.convert.mapping import Conversion, TargetColumn
from reqdedup.dedup.checksum import value_hashes
from reqdedup.dedup.stored import is_binary, is_text
from reqdedup.logs.ids import ItemKeys, hash_strings
from reqdedup.storage.foreign.source import RowSource, Stretch

_ID_MASK = np.uint64(2**63 - 1)


def check_text(array: pa.Array, rows: np.ndarray) -> None:
    """Raise ValueError, naming the row, for a string that is not UTF-8: other engines could not read it back."""
    lists = array if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) else None
    array = array if lists is None else array.flatten()
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return
    try:
        (array.dictionary if pa.types.is_dictionary(array.type) else array).validate(full=True)
    except pa.ArrowInvalid:
        if lists is not None:
            rows = np.repeat(rows, pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False))
        plain = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        for row, value in zip(rows.tolist(), plain.cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                raise ValueError(
                    f"text in UTF-8 required, found {value[:40]!r} at row {row + 1}; put it right in the source, or "
                    "exclude the column"
                ) from None


def hash_ids(columns: Sequence[pa.Array]) -> pa.Array:
    """int64 ids of strings, as `ingest` gives them; of several columns together, or of others, another stable hash.

    A string becomes the first 8 bytes of its BLAKE2b digest without the top bit, a binary id those of its hexadecimal
    text; null stays null.
    """
    if len(columns) == 1 and (is_text(columns[0].type) or is_bytes(columns[0].type)):
        return _string_ids(columns[0])
    combined = np.zeros(len(columns[0]), np.uint64)
    missing = np.zeros(len(columns[0]), bool)
    for column in columns:
        missing |= column.is_null().to_numpy(zero_copy_only=False)
        combined = mix(combined ^ mix(_word(column)))
    return pa.array((combined & _ID_MASK).view(np.int64), mask=missing)


def _word(column: pa.Array) -> np.ndarray:
    """Numbers that tell the values of a key apart, [N] uint64: the same for a time in whatever unit."""
    kind = column.type
    if is_text(kind) or is_bytes(kind):
        column = _string_ids(column)
    elif pa.types.is_timestamp(kind):
        whole = column.cast(pa.timestamp("us", kind.tz), safe=False)
        finer = pc.subtract(column.cast(pa.int64()), whole.cast(column.type).cast(pa.int64()))
        us, rest = (pc.fill_null(one.cast(pa.int64()), 0).to_numpy().view(np.uint64) for one in (whole, finer))
        return us ^ np.where(rest == 0, np.uint64(0), mix(rest))
    elif pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return value_hashes(column)
    elif pa.types.is_uint64(kind):
        return pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    return pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).view(np.uint64)


def _string_ids(array: pa.Array) -> pa.Array:
    return by_value(array, lambda texts: hash_strings(texts).to_numpy())


def by_value(array: pa.Array, ids: Callable[[pl.Series], np.ndarray]) -> pa.Array:
    """int64 ids of texts, which are asked for once per distinct text; null stays null."""
    encoded = _encoded(array)
    return pa.array(ids(pl.Series(encoded.dictionary, dtype=pl.String))).take(encoded.indices)


def _encoded(array: pa.Array) -> pa.DictionaryArray:
    """The distinct texts without null, and which of them each value is; binary ids as hexadecimal text."""
    if is_bytes(array.type):
        array = hex_text(array)
    if pa.types.is_dictionary(array.type) and array.dictionary.null_count:
        array = array.dictionary_decode()
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def item_keys(source: RowSource, columns: Sequence[TargetColumn], part: Sequence[Stretch] | None = None) -> ItemKeys:
    """The keys of all items of a source, or of a part of it, without ids. Reads their columns alone."""
    names, keys = [target.sources[0] for target in columns if target.conversion is Conversion.ITEM], ItemKeys()
    for piece in source.pieces(names, part):
        for name in names:
            array = piece.arrays[name]
            try:
                check_text(array, piece.rows)
            except ValueError as error:
                raise ValueError(f"{piece.path}: column {name}: {error}") from None
            is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
            encoded = _encoded(array.flatten() if is_list else array)
            keys.add(pl.Series(encoded.dictionary, dtype=pl.String), _counts(encoded))
    return keys


def _counts(encoded: pa.DictionaryArray) -> np.ndarray:
    indices = encoded.indices.drop_null().to_numpy(zero_copy_only=False)
    return np.bincount(indices, minlength=len(encoded.dictionary))


def is_bytes(kind: pa.DataType) -> bool:
    return is_binary(kind) or pa.types.is_fixed_size_binary(kind)


def hex_text(array: pa.Array) -> pa.Array:
    return pa.array([None if value is None else value.hex() for value in array.to_pylist()], pa.string())
