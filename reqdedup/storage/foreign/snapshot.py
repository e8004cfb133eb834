"""The files of an Iceberg snapshot, their columns found by field id at every level.

Files come from `scan.plan_files()`, never from a listing, and are opened as the manifest spells their paths. A file
without ids has those that the table's name mapping (`schema.name-mapping.default`) gives to its names. A column that a
file lacks has its partition's value if it is partitioned by it, else its initial default, else null.

Source: Iceberg specification, "Column Projection".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.name_mapping import MappedField
from pyiceberg.transforms import IdentityTransform

from reqdedup.storage.foreign.files import DataFile, TableFiles, open_file, with_notes
from reqdedup.storage.foreign.leaves import Leaf, has_ids, leaves_of, small_types, wholes_of, with_ids
from reqdedup.storage.iceberg.manifests import COPY_THERE, scan_tasks
from reqdedup.storage.iceberg.paths import local_path
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.small_files import SmallFiles


def snapshot_files(table: Table, snapshot_id: int | None = None) -> TableFiles:
    """The files of a snapshot, the current one if None. Raises ValueError for none, and for files
    that are no Parquet."""
    name = ".".join(table.name())
    if snapshot_id is None and table.current_snapshot() is None:
        raise ValueError(f"{name}: a table with rows required, found no snapshot; write something first")
    scan = table.scan(snapshot_id=snapshot_id)
    tasks = sorted(scan_tasks(table, snapshot_id), key=lambda task: task.file.file_path)
    if not tasks:
        raise ValueError(f"{name}: a table with rows required, found a snapshot without data files")
    other = sorted({str(task.file.file_format).rpartition(".")[2] for task in tasks} - {"PARQUET"})
    if other:
        raise ValueError(f"{name}: Parquet data files required, found {', '.join(other)}; {COPY_THERE}")
    schema = small_types(schema_to_pyarrow(scan.projection()))
    leaves, wholes = leaves_of(schema), wholes_of(schema)
    kept = SmallFiles()
    portable = PortableTable(table)
    files = [_file(portable, task, scan.projection(), leaves, wholes, kept) for task in tasks]
    deletes = {delete.file_path for task in tasks for delete in task.delete_files}
    notes = (
        (
            f"{len(deletes):,} delete files were not applied: rows that they delete are still in the data files and "
            "were counted",
        )
        if deletes
        else ()
    )
    return with_notes(TableFiles(name, "iceberg", tuple(files), schema, notes))


def _file(
    portable: PortableTable,
    task: FileScanTask,
    schema: Schema,
    leaves: list[Leaf],
    wholes: list[Leaf],
    kept: SmallFiles,
) -> DataFile:
    path, table = task.file.file_path, portable.table
    file = open_file(
        path,
        _opener(portable, path, kept),
        task.file.file_size_in_bytes,
        ids=lambda found: _schema_with_ids(table, path, found),
        leaves=leaves,
        wholes=wholes,
    )
    return replace(file, constants=_constants(table, task, schema, file, leaves))


def _schema_with_ids(table: Table, path: str, schema: pa.Schema) -> pa.Schema:
    if has_ids(schema):
        return schema
    mapping = table.name_mapping()
    if mapping is None:
        raise ValueError(
            f"{path}: field ids in the file, or a name mapping of {'.'.join(table.name())} "
            "(schema.name-mapping.default) required, found neither; set the mapping, as add_files does"
        )
    return with_ids(schema, dict(_paths(mapping)).get)


def _paths(fields: Iterable[MappedField], prefix: str = "") -> Iterable[tuple[str, int | None]]:
    for field in fields:
        for name in field.names:
            yield prefix + name, field.field_id
            yield from _paths(field.fields, f"{prefix}{name}.")


def _opener(table: PortableTable, path: str, kept: SmallFiles) -> Callable[[], Any]:
    local = local_path(path)
    return partial(pa.OSFile, local) if local is not None else partial(_open_stored, table, path, kept)


def _open_stored(table: PortableTable, path: str, kept: SmallFiles) -> Any:
    return kept.open(path, table.table.io.new_input(path).open)


def _constants(
    table: Table, task: FileScanTask, schema: Schema, file: DataFile, leaves: list[Leaf]
) -> dict[str, pa.Scalar]:
    """Values of columns that the file lacks: those of its partition, then initial defaults."""
    constants = {}
    by_source = {
        field.source_id: task.file.partition[position]
        for position, field in enumerate(table.specs()[task.file.spec_id].fields)
        if isinstance(field.transform, IdentityTransform)
    }
    for leaf in leaves:
        if leaf.name in file.leaf_in_file or leaf.field_id is None:
            continue
        field = schema.find_field(leaf.field_id)
        value = by_source.get(leaf.field_id)
        if value is None and field.initial_default is not None:
            value = field.initial_default
            if leaf.name != leaf.column:
                raise ValueError(
                    f"{file.path}: field {leaf.name} in every file required, since a default inside a struct or list "
                    "cannot be read; have the engine that added the field rewrite the data files"
                )
        if value is not None:
            constants[leaf.name] = pa.scalar(value, leaf.type)
    return constants
