"""Further rows for a table that is there: which of its columns they go into, and whether they fit.

Nothing is found by a sample: levels, widths and types are the table's, so that a day on which a column happens to be
constant does not make another table. Types may be narrower than the table's; nothing else may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.table import Table

from reqdedup.convert.mapping import ORIGINALS, ColumnMapping, TargetColumn
from reqdedup.display import counted
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage.foreign.leaves import Shape
from reqdedup.storage.foreign.source import RowSource
from reqdedup.storage.iceberg.changes import check_one_spec
from reqdedup.storage.iceberg.layout import LAYOUT_PROPERTY, PROMOTIONS, Layout, table_buckets, table_layout

WIDER = {*PROMOTIONS, ("bool", "int32"), ("date", "timestamp")}


def open_for_append(catalog: Catalog, identifier: str, layout: Layout | None, num_buckets: int | None) -> Table:
    """The table. Raises ValueError if there is none of ours, or one of another layout or bucket count than given."""
    try:
        table = catalog.load_table(identifier)
    except (NoSuchTableError, NoSuchNamespaceError):
        raise ValueError(
            f"{identifier}: a table required to append to, found none; convert the first rows without append (--append)"
        ) from None
    if LAYOUT_PROPERTY not in table.properties:
        raise ValueError(
            f"{identifier}: a table that reqdedup made required to append to, found another one; convert it into a new "
            "table first"
        )
    found, buckets = table_layout(table), table_buckets(table)
    if layout not in (None, found):
        raise ValueError(
            f"{identifier}: its layout {found.value} required by an append, found {layout.value}; leave it out"
        )
    if num_buckets not in (None, buckets):
        raise ValueError(
            f"{identifier}: its {counted(buckets, 'bucket') if buckets else 'no buckets'} required by an append, "
            f"found {num_buckets}; leave the number out, or change it with `reqdedup rebucket`"
        )
    check_one_spec(table, "an append")
    return table


def known_columns(
    source: RowSource, mapping: ColumnMapping, schema: EngagementSchema
) -> tuple[dict[str, Level], dict[str, int], list[str]]:
    """Levels of all columns of the source, widths of vectors, and the sequences, as the table has them; what is given
    goes over it."""
    levels, widths, sequences = {}, {}, []
    by_name = {column.name: column for column in schema.columns}
    for leaf in source.leaves.values():
        column = by_name.get(mapping.target_name(leaf.name))
        default = Level.REQUEST if leaf.shape is Shape.LIST else Level.ITEM
        levels[leaf.name] = column.level if column is not None and column.level is not Level.KEY else default
        if column is None or column.kind is Kind.SEQUENCE:
            sequences.append(leaf.name)
        if column is not None and column.width:
            widths[leaf.name] = column.width
    return levels | dict(mapping.levels), widths | dict(mapping.vectors or {}), sequences


def in_table_order(
    planned: Sequence[TargetColumn], table: Table, schema: EngagementSchema, source: RowSource
) -> tuple[TargetColumn, ...]:
    """The planned columns as those of the table, in its order. Raises ValueError that names all that differ."""
    by_name = {target.column.name: target for target in planned}
    differs = [f"no column for {name}" for name in schema.names if name not in by_name]
    differs += [
        f"{', '.join(target.sources)} has no place there" for name, target in by_name.items() if name not in schema
    ]
    for key, original in ORIGINALS.items():
        sources = by_name[key].sources
        if len(sources) == 1 and (original in by_name) != (original in schema):
            ids = f"text ({original})" if original in schema else "int64"
            differs.insert(0, f"{key} is {source.leaves[sources[0]].type}, there {ids}")
    for column in schema.columns:
        target = by_name.get(column.name)
        if target is None:
            continue
        if _form(target.column, like=column) != _form(column):
            differs.append(f"{column.name} is {_form(target.column)}, there {_form(column)}")
        elif target.column.vocabulary != column.vocabulary:
            own, there = (
                f"keys of {one.vocabulary}" if one.vocabulary else "numbers" for one in (target.column, column)
            )
            differs.append(f"{column.name} is of {own}, there of {there}")
        elif len(target.sources) > 1 and target.column.doc != column.doc:
            differs.append(f"{column.name} is {target.column.doc}, there {column.doc}")
    if differs:
        raise ValueError(
            f"{source.name}: the columns of {'.'.join(table.name())} required by an append, found: "
            f"{'; '.join(differs)}. Name the columns as when the table was made, exclude those that it has not "
            "(--exclude), or convert into a new table"
        )
    return tuple(replace(by_name[column.name], column=column) for column in schema.columns)


def _form(column: Column, like: Column | None = None) -> str:
    """Level, kind and type in words; a type that `like` holds too counts as its own."""
    dtype = like.dtype if like is not None and (column.dtype, like.dtype) in WIDER else column.dtype
    kind = (
        "" if not column.is_blob else f"{column.kind.value} of " if not column.width else f"vector of {column.width} "
    )
    return f"{kind}{dtype} ({column.level.value})"
