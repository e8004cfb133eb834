"""Iceberg tables with a history: fields renamed, dropped, added again and swapped at every level between appends."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import IntegerType, ListType, LongType, NestedField, StringType, StructType

ROWS = 6
FIRST = pa.schema(
    [
        ("row", pa.int64()),
        ("v", pa.int32()),
        ("s", pa.struct([("a", pa.int64()), ("b", pa.int32()), ("deep", pa.struct([("c", pa.string())]))])),
        ("h", pa.list_(pa.struct([("x", pa.int64()), ("y", pa.int32())]))),
        ("l", pa.list_(pa.int32())),
    ]
)


def memory_catalog(folder: Path) -> Catalog:
    catalog = load_catalog("memory", type="in-memory", warehouse=f"file://{folder}")
    catalog.create_namespace("a")
    return catalog


def evolved_table(folder: Path, seed: int, *, num_changes: int = 8, without_ids: bool = False) -> Table:
    """A table after random changes and appends; its first file without field ids, under a name mapping, if so said."""
    rng = random.Random(seed)
    table = memory_catalog(folder).create_table(f"a.t{seed}", FIRST)
    if without_ids:
        path = folder / f"{uuid.uuid4()}.parquet"
        pq.write_table(_rows(table, rng, 0), path)
        table.add_files([str(path)])
    else:
        table.append(_rows(table, rng, 0))
    for number in range(num_changes):
        if rng.random() < 0.35:
            table.append(_rows(table, rng, ROWS * (number + 1)))
        else:
            _change(table, rng)
    return table


def _change(table: Table, rng: random.Random) -> None:
    parent, fields = rng.choice(list(_structs(table.schema())))
    names = [field.name for field in fields if field.name != "row"]
    what = rng.choice(["rename", "drop", "add", "add again", "swap", "widen"])
    with table.update_schema() as update:
        if what == "rename" and names:
            update.rename_column((*parent, rng.choice(names)), _fresh(fields, rng))
        elif what == "drop" and len(names) > 1:
            update.delete_column((*parent, rng.choice(names)))
        elif what == "add":
            update.add_column((*parent, _fresh(fields, rng)), _new_type(rng))
        elif what == "widen":
            narrow = [field.name for field in fields if isinstance(field.field_type, IntegerType)]
            if narrow:
                update.update_column((*parent, rng.choice(narrow)), LongType())
    if what == "swap" and len(names) > 1:
        one, other = rng.sample(names, 2)
        for old, new in ((one, "swapping"), (other, one), ("swapping", other)):
            with table.update_schema() as update:
                update.rename_column((*parent, old), new)
    if what == "add again" and len(names) > 1:
        name = rng.choice(names)
        with table.update_schema() as update:
            update.delete_column((*parent, name))
        with table.update_schema() as update:
            update.add_column((*parent, name), _new_type(rng))


def _fresh(fields: tuple[NestedField, ...], rng: random.Random) -> str:
    taken = {field.name for field in fields}
    return rng.choice([name for name in "abcdefgxyz" if name not in taken])


def _new_type(rng: random.Random) -> Any:
    return rng.choice([LongType(), IntegerType(), StringType(), StructType(NestedField(1, "n", LongType()))])


def _structs(schema: Schema) -> Any:
    """Path and fields of the root and of every struct, those inside lists too."""
    yield (), schema.fields

    def inside(path: tuple[str, ...], kind: Any) -> Any:
        if isinstance(kind, ListType):
            yield from inside((*path, "element"), kind.element_type)
        if isinstance(kind, StructType):
            yield path, kind.fields
            for field in kind.fields:
                yield from inside((*path, field.name), field.field_type)

    for field in schema.fields:
        yield from inside((field.name,), field.field_type)


def _rows(table: Table, rng: random.Random, first: int) -> pa.Table:
    schema = table.schema().as_arrow()
    rows = [{field.name: _value(field.type, rng) for field in schema} | {"row": first + i} for i in range(ROWS)]
    return pa.Table.from_pylist(rows, schema)


def _value(kind: pa.DataType, rng: random.Random) -> Any:
    if rng.random() < 0.15:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _value(field.type, rng) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        element = kind.value_type
        return [_value(element, rng) or _empty(element) for _ in range(rng.randrange(4))]
    return rng.choice("pqr") if pa.types.is_large_string(kind) else rng.randrange(1000)


def _empty(kind: pa.DataType) -> Any:
    return {field.name: None for field in kind} if pa.types.is_struct(kind) else 0
