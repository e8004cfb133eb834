"""Values of any Arrow type: their type's name, whether two are the same, a hash and the bytes of each.

Numbers, times and text have shorter ways of their own (`checksum`, `parts`), which come here for what tables only
store: dates, decimals, binary values, lists, maps and structs. A list is its length and its elements in order, null
elements among them; a map is the list of its entries, in order; a null equals a null of the same place only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.ranges import offsets_of, ranges
from reqdedup.schema import TypeTree, type_tree

_SCALARS = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "binary": pa.binary(),
}

MAX_PRECISION = 38
"""Digits of a decimal, at most, that Iceberg can hold."""


@cache
def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a type name."""
    return _arrow(type_tree(name))


def _arrow(tree: TypeTree) -> pa.DataType:
    kind, *parts = tree
    if kind == "decimal":
        return pa.decimal128(*parts)
    if kind == "fixed":
        return pa.binary(parts[0])
    if kind == "list":
        return pa.list_(pa.field("element", _arrow(parts[0])))
    if kind == "map":
        return pa.map_(*map(_arrow, parts))
    if kind == "struct":
        return pa.struct([pa.field(name, _arrow(part)) for name, part in parts])
    return _SCALARS[kind]


def type_name(kind: pa.DataType) -> str | None:
    """The smallest type that holds every value of an Arrow type, by its name; None if there is none."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_map(kind):
        return _joined("map", [type_name(kind.key_type), type_name(kind.item_type)])
    if pa.types.is_struct(kind):
        parts = [type_name(field.type) for field in kind]
        names = [json.dumps(field.name, ensure_ascii=False) for field in kind]
        return _joined("struct", [part and f"{name}:{part}" for name, part in zip(names, parts)]) if parts else None
    if is_list(kind):
        return _joined("list", [type_name(kind.value_type)])
    return _scalar_name(kind)


def _joined(kind: str, parts: list[str | None]) -> str | None:
    found = [part for part in parts if part is not None]
    return f"{kind}<{','.join(found)}>" if len(found) == len(parts) else None


def _scalar_name(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int32" if kind.bit_width < 32 or kind == pa.int32() else "int64"
    if pa.types.is_floating(kind):
        return "float64" if kind.bit_width == 64 else "float32"
    if pa.types.is_decimal(kind):
        return (
            f"decimal({kind.precision},{kind.scale})" if kind.scale >= 0 and kind.precision <= MAX_PRECISION else None
        )
    if pa.types.is_fixed_size_binary(kind):
        return f"fixed({kind.byte_width})" if kind.byte_width else None
    for check, name in (
        (pa.types.is_timestamp, "timestamp"),
        (pa.types.is_date, "date"),
        (pa.types.is_time, "time"),
        (is_text, "string"),
        (is_binary, "binary"),
    ):
        if check(kind):
            return name
    return None


def is_text(kind: pa.DataType) -> bool:
    """Strings of any offsets, in a dictionary too."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Binary values of any length."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Lists of variable or fixed length, no maps."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in (*checks, pa.types.is_list_view, pa.types.is_large_list_view))


def is_nested(kind: pa.DataType) -> bool:
    """Lists, maps and structs."""
    return is_list(kind) or pa.types.is_map(kind) or pa.types.is_struct(kind)


@cache
def has_offsets(kind: pa.DataType) -> bool:
    """Values of any length, which Arrow finds by offsets."""
    return is_text(kind) or is_binary(kind) or is_nested(kind)


def large_type(kind: pa.DataType) -> pa.DataType:
    """The same type with 64-bit offsets wherever Arrow has them; maps have none of their own."""
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.large_list(pa.field("element", large_type(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(large_type(kind.key_type), large_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(large_type(field.type)) for field in kind])
    return kind


def value_bytes(array: pa.Array) -> np.ndarray:
    """About the bytes of each value, [N] int64: those of its text, elements and fields, and 4 for each list."""
    kind = array.type
    if is_text(kind) or is_binary(kind):
        return pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_struct(kind):
        return sum(map(value_bytes, array.flatten()), np.zeros(len(array), np.int64))
    if is_nested(kind):
        elements, offsets = packed(array)
        ends = np.concatenate([[0], np.cumsum(value_bytes(elements))])
        return np.diff(ends[offsets]) + 4
    return np.full(len(array), (kind.bit_width + 7) // 8, np.int64)


def packed(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Elements and offsets [N + 1] of lists or maps; a null has none, and the entries of a map are structs."""
    kind = lists.type
    if pa.types.is_map(kind):
        entry = pa.struct([pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)])
        lists = lists.cast(pa.list_(entry))
    lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)
    return lists.flatten(), offsets_of(lengths)


def same_values(
    left: pa.Array, right: pa.Array, same_scalars: Callable[[pa.Array, pa.Array], np.ndarray]
) -> np.ndarray:
    """If nested values of one type are the same, [N] bool. same_scalars: says it of arrays that are not nested."""
    if not is_nested(left.type):
        return same_scalars(left, right)
    nulls, others = (array.is_null().to_numpy(zero_copy_only=False) for array in (left, right))
    same = nulls == others
    if pa.types.is_struct(left.type):
        for one, other in zip(left.flatten(), right.flatten()):
            same &= same_values(one, other, same_scalars) | nulls
        return same
    (elements, offsets), (theirs, their_offsets) = packed(left), packed(right)
    lengths = np.diff(offsets)
    same &= lengths == np.diff(their_offsets)
    rows = np.flatnonzero(same & (lengths > 0))
    if len(rows):
        mine, yours = (pa.array(ranges(at[rows], lengths[rows])) for at in (offsets, their_offsets))
        equal = same_values(elements.take(mine), theirs.take(yours), same_scalars)
        same[rows] = np.logical_and.reduceat(equal, offsets_of(lengths[rows])[:-1])
    return same
