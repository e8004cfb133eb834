"""The leaf columns of a table: what Parquet stores, under names that a person would use.

Parquet stores a struct as one column per field and a list of structs as one list per field, each encoded, paged and
compressed alone. So the audit works on leaves: `user.country`, `history.item_id`. A leaf is a scalar or one list of
scalars; deeper nesting (lists of lists, maps) is left as it is and named in the report.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FIELD_ID = b"PARQUET:field_id"
"""Metadata of an Arrow field that a Parquet file's field has as its id."""


class Shape(enum.Enum):
    """`SCALAR`: one value per row; `LIST`: one list of scalars per row; `NESTED`: anything deeper, not estimated."""

    SCALAR = "scalar"
    LIST = "list"
    NESTED = "nested"


@dataclass(frozen=True)
class Leaf:
    """One leaf column.

    name: dotted, without the levels that lists add.  column: the top-level column that it belongs to.
    type: of a scalar, or of one element of a list.  field_id: Iceberg's, None if the file has none.
    list_id: Iceberg's id of the outermost list around it, or that list's name if it has no id.
    is_uuid: 16 bytes that are a UUID.
    """

    name: str
    column: str
    shape: Shape
    type: pa.DataType
    field_id: int | None = field(default=None, compare=False)
    list_id: int | str | None = field(default=None, compare=False)
    is_uuid: bool = False

    @property
    def width_bytes(self) -> int:
        """Bytes of one value of a fixed width, 0 for strings and binary; a boolean counts as one byte."""
        if pa.types.is_boolean(self.type):
            return 1
        try:
            return self.type.bit_width // 8
        except ValueError:
            return 0


def leaves_of(schema: pa.Schema) -> list[Leaf]:
    """Leaves in the order in which Parquet numbers its columns."""
    found: list[Leaf] = []
    for column in schema:
        _add_leaves(found, column.name, column.name, column, lists=(), deep=False)
    return found


def wholes_of(schema: pa.Schema) -> list[Leaf]:
    """What leaves of a deeper nesting belong to: maps, lists of lists, and what has no type; each with its whole type.

    Their names and arrays are those of `leaf_arrays`. Structs outside of maps are taken apart, as for leaves.
    """
    found: list[Leaf] = []
    for column in schema:
        _add_wholes(found, column.name, column.name, column, lists=(), wrap=lambda kind: kind)
    return found


def with_ids(schema: pa.Schema, id_of: Callable[[str], int | None]) -> pa.Schema:
    """The schema with Iceberg's ids by path, as a name mapping has them, in place of those of the file."""
    return pa.schema([_with_id(column, column.name, id_of) for column in schema])


def has_ids(schema: pa.Schema) -> bool:
    """Whether every leaf has a field id."""
    return all(leaf.field_id is not None for leaf in leaves_of(schema))


def leaf_arrays(name: str, array: pa.Array) -> dict[str, pa.Array]:
    """The scalar, list and deeper nested leaves of one top-level array; lists come as `list_` or `large_list`, maps
    whole."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    array = without_views(array)
    if isinstance(array, pa.DictionaryArray) and not is_text(array.type.value_type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_struct(kind):
        found: dict[str, pa.Array] = {}
        for field, child in zip(kind, array.flatten()):
            found |= leaf_arrays(f"{name}.{field.name}", child)
        return found
    if not _is_list(kind):
        return {} if pa.types.is_union(kind) else {name: array}
    lists = _plain_list(array)
    values = lists.flatten()
    return {leaf: relist(lists, child) for leaf, child in leaf_arrays(name, values).items()}


def uuid_text(array: pa.Array) -> pa.Array:
    """UUIDs of 16 bytes, alone or in lists, as text of 36 characters; null stays null."""
    if _is_list(array.type):
        return relist(array, uuid_text(array.flatten()))
    data = np.frombuffer(b"".join(pc.fill_null(array, bytes(16)).to_pylist()), np.uint8).reshape(-1, 16)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.full((len(data), 36), ord("-"), np.uint8)
    text[:, _HEX_AT] = digits[np.stack([data >> 4, data & 15], axis=2).reshape(-1, 32)]
    offsets = pa.py_buffer(np.arange(0, 36 * len(data) + 1, 36, dtype=np.int32))
    made = pa.StringArray.from_buffers(len(data), offsets, pa.py_buffer(text))
    return pc.if_else(array.is_null(), pa.scalar(None, pa.string()), made) if array.null_count else made


_HEX_AT = [at for at in range(36) if at not in (8, 13, 18, 23)]


def small_types(schema: pa.Schema) -> pa.Schema:
    """The same columns with strings, binary and lists of 32-bit offsets, as files have them."""
    return pa.schema([_small(column) for column in schema])


def _small(of: pa.Field) -> pa.Field:
    kind = of.type
    if pa.types.is_large_string(kind):
        kind = pa.string()
    elif pa.types.is_large_binary(kind):
        kind = pa.binary()
    elif pa.types.is_struct(kind):
        kind = pa.struct([_small(child) for child in kind])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = pa.list_(_small(kind.value_field))
    elif pa.types.is_map(kind):
        kind = pa.map_(_small(kind.key_field), _small(kind.item_field))
    return of.with_type(kind)


def without_views(array: pa.Array) -> pa.Array:
    """The same values without views of strings, as DataFusion writes them: pyarrow 26 can neither
    take nor filter those."""
    kind = _without_views(array.type)
    return array if kind.equals(array.type) else array.cast(kind)


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    for is_list, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_list(kind):
            return make(kind.value_field.with_type(_without_views(kind.value_type)))
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Strings and binary: the types whose dictionary pages pyarrow can hand over as they are."""
    return any(
        check(kind)
        for check in (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    )


def same_values(found: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both, None if there is none; names of list elements do not matter."""
    if found.equals(other):
        return found
    try:
        schemas = [pa.schema([pa.field("x", _normalised(kind))]) for kind in (found, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowInvalid:
        return None
    except pa.ArrowTypeError:
        return None


def _add_leaves(
    found: list[Leaf], name: str, column: str, of: pa.Field, *, lists: tuple[int | str, ...], deep: bool
) -> None:
    kind = of.type
    is_uuid = kind == pa.uuid()
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        for child in kind:
            _add_leaves(found, f"{name}.{child.name}", column, child, lists=lists, deep=deep)
    elif pa.types.is_map(kind):
        for part, child in (("key", kind.key_field), ("value", kind.item_field)):
            _add_leaves(found, f"{name}.{part}", column, child, lists=(*lists, _id_of(of) or name), deep=True)
    elif _is_list(kind):
        _add_leaves(found, name, column, kind.value_field, lists=(*lists, _id_of(of) or name), deep=deep)
    else:
        nested = deep or len(lists) > 1 or pa.types.is_union(kind) or pa.types.is_null(kind)
        shape = Shape.NESTED if nested else Shape.LIST if lists else Shape.SCALAR
        found.append(Leaf(name, column, shape, kind, _id_of(of), lists[0] if lists else None, is_uuid))


def _add_wholes(
    found: list[Leaf],
    name: str,
    column: str,
    of: pa.Field,
    *,
    lists: tuple[int | str, ...],
    wrap: Callable[[pa.DataType], pa.DataType],
) -> None:
    kind = of.type.storage_type if isinstance(of.type, pa.BaseExtensionType) else of.type
    if pa.types.is_struct(kind):
        for child in kind:
            _add_wholes(found, f"{name}.{child.name}", column, child, lists=lists, wrap=wrap)
    elif _is_list(kind):
        around = (*lists, _id_of(of) or name)
        _add_wholes(found, name, column, kind.value_field, lists=around, wrap=lambda inner: wrap(pa.list_(inner)))
    elif len(lists) > 1 or pa.types.is_map(kind) or pa.types.is_union(kind) or pa.types.is_null(kind):
        found.append(Leaf(name, column, Shape.NESTED, wrap(kind), _id_of(of), lists[0] if lists else None))


def _id_of(of: pa.Field) -> int | None:
    field_id = (of.metadata or {}).get(FIELD_ID)
    return None if field_id is None else int(field_id)


def _with_id(of: pa.Field, path: str, id_of: Callable[[str], int | None]) -> pa.Field:
    kind = of.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_with_id(child, f"{path}.{child.name}", id_of) for child in kind])
    elif pa.types.is_map(kind):
        key, value = (
            _with_id(child, f"{path}.{part}", id_of)
            for child, part in ((kind.key_field, "key"), (kind.item_field, "value"))
        )
        kind = pa.map_(key, value)
    elif pa.types.is_fixed_size_list(kind):
        kind = pa.list_(_with_id(kind.value_field, f"{path}.element", id_of), kind.list_size)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        kind = make(_with_id(kind.value_field, f"{path}.element", id_of))
    field_id = id_of(path)
    metadata = {} if field_id is None else {FIELD_ID: str(field_id)}
    return pa.field(of.name, kind, of.nullable, metadata)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _plain_list(array: pa.Array) -> pa.Array:
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return array
    return relist(array, array.flatten())  # pyarrow 26 casts list views to other lists than they are (GH-50994)


def relist(lists: pa.Array, values: pa.Array) -> pa.Array:
    """The same lists around other values of the same count."""
    lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    mask = lists.is_null() if lists.null_count else None
    return pa.LargeListArray.from_arrays(offsets, values, mask=mask)


def _normalised(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _normalised(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _normalised(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_map(kind):
        return pa.map_(_normalised(kind.key_type), _normalised(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _normalised(field.type)) for field in kind])
    if _is_list(kind):
        return pa.list_(pa.field("element", _normalised(kind.value_type)))
    return kind
