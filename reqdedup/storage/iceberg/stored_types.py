"""The types that tables only store, in Iceberg: with an id for every element, entry and field inside."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestamptzType,
    TimeType,
)

from reqdedup.dedup.stored import arrow_type
from reqdedup.schema import TypeTree, type_tree

ICEBERG_TYPES: dict[str, IcebergType] = {
    "bool": BooleanType(),
    "int32": IntegerType(),
    "int64": LongType(),
    "float32": FloatType(),
    "float64": DoubleType(),
    "string": StringType(),
    "timestamp": TimestamptzType(),
    "date": DateType(),
    "time": TimeType(),
    "binary": BinaryType(),
}

_NAMES = {kind: name for name, kind in ICEBERG_TYPES.items()}


def iceberg_type_of(name: str, next_id: Callable[[], int]) -> IcebergType:
    """The Iceberg type of a type name; next_id: gives the ids of what is inside."""
    return _iceberg(type_tree(name), next_id)


def _iceberg(tree: TypeTree, next_id: Callable[[], int]) -> IcebergType:
    kind, *parts = tree
    if kind == "decimal":
        return DecimalType(*parts)
    if kind == "fixed":
        return FixedType(parts[0])
    if kind == "list":
        return ListType(next_id(), _iceberg(parts[0], next_id), element_required=False)
    if kind == "map":
        key, value = next_id(), next_id()
        return MapType(key, _iceberg(parts[0], next_id), value, _iceberg(parts[1], next_id), value_required=False)
    if kind == "struct":
        return StructType(
            *(NestedField(next_id(), name, _iceberg(part, next_id), required=False) for name, part in parts)
        )
    return ICEBERG_TYPES[kind]


def with_new_ids(kind: IcebergType, next_id: Callable[[], int]) -> IcebergType:
    """The same type with other ids inside."""
    if isinstance(kind, ListType):
        own = next_id()
        return ListType(own, with_new_ids(kind.element_type, next_id), element_required=kind.element_required)
    if isinstance(kind, MapType):
        key, value = next_id(), next_id()
        types = [with_new_ids(one, next_id) for one in (kind.key_type, kind.value_type)]
        return MapType(key, types[0], value, types[1], value_required=kind.value_required)
    if isinstance(kind, StructType):
        return StructType(
            *(
                NestedField(next_id(), one.name, with_new_ids(one.field_type, next_id), required=one.required)
                for one in kind.fields
            )
        )
    return kind


def without_ids(kind: IcebergType) -> IcebergType:
    """The same type with every id 0: two are equal if they differ in nothing else."""
    return with_new_ids(kind, lambda: 0)


def arrow_of(kind: IcebergType) -> pa.DataType:
    """The Arrow type of an Iceberg type in data files, with its ids for Parquet."""
    if isinstance(kind, ListType):
        element = pa.field("element", arrow_of(kind.element_type), nullable=not kind.element_required)
        return pa.list_(element.with_metadata(field_id(kind.element_id)))
    if isinstance(kind, MapType):
        key = pa.field("key", arrow_of(kind.key_type), nullable=False, metadata=field_id(kind.key_id))
        value = pa.field("value", arrow_of(kind.value_type), metadata=field_id(kind.value_id))
        return pa.map_(key, value)
    if isinstance(kind, StructType):
        return pa.struct(
            [
                pa.field(one.name, arrow_of(one.field_type), nullable=not one.required, metadata=field_id(one.field_id))
                for one in kind.fields
            ]
        )
    if isinstance(kind, DecimalType):
        return pa.decimal128(kind.precision, kind.scale)
    if isinstance(kind, FixedType):
        return pa.binary(len(kind))
    return arrow_type(_NAMES[kind])


def leaves(name: str, tree: TypeTree) -> list[tuple[str, str]]:
    """Path in Parquet, and type name, of every leaf of a column."""
    kind, *parts = tree
    if kind == "list":
        return leaves(f"{name}.list.element", parts[0])
    if kind == "map":
        return [*leaves(f"{name}.key_value.key", parts[0]), *leaves(f"{name}.key_value.value", parts[1])]
    if kind == "struct":
        return [leaf for field, part in parts for leaf in leaves(f"{name}.{field}", part)]
    return [(name, kind)]


def field_id(number: int) -> dict[bytes, bytes]:
    """Metadata of an Arrow field that Parquet takes as its id."""
    return {b"PARQUET:field_id": str(number).encode()}
