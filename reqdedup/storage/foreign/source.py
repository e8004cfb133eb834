"""The rows of a table that a team already has, in pieces of bounded memory: leaf columns by name, deletes applied.

A leaf is a scalar or one list of scalars (`audit.leaves`): `user.country`, `history.item_id`. Rows that another engine
has deleted through position-delete files are left out; equality deletes are refused. Columns that are only in an Iceberg
table's partition (as after `add_files` on Hive folders) get their partition's value. Of a table of ours, blobs are decoded
and levels and widths known: so it is rewritten after another engine deleted rows, or from one layout into another.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import _read_all_delete_files, schema_to_pyarrow
from pyiceberg.manifest import DataFileContent
from pyiceberg.table import FileScanTask, Table
from pyiceberg.transforms import IdentityTransform

from reqdedup.dedup.encoding import element_type, lists_from_blobs, take_blobs
from reqdedup.dedup.parts import blob_bytes
from reqdedup.schema import Column, Level
from reqdedup.storage.foreign.files import DataFile, TableFiles, open_table
from reqdedup.storage.foreign.leaves import Leaf, Shape, leaf_arrays, leaves_of
from reqdedup.storage.iceberg.layout import SCHEMA_PROPERTY, table_layout, table_schema
from reqdedup.storage.write.spill import greedy_ranges

PIECE_BYTES = 32 * 2**20
"""Of a piece's rows, laid down as the plain lists that they are."""

MAX_PIECE_BYTES = 2 * PIECE_BYTES
"""Of the lists of a piece: where long ones lie together, it is cut."""

MAX_PIECE_ROWS = 2**16


@dataclass(frozen=True)
class Piece:
    """Some rows of a file. arrays: by leaf name; a leaf that the file does not have is null.  rows: their numbers in it, [N]."""

    arrays: dict[str, pa.Array]
    num_rows: int
    path: str
    rows: np.ndarray

    @property
    def where(self) -> str:
        return f"{self.path} at row {self.rows[0] if len(self.rows) else 0}"


class RowSource:
    """A table's rows as pieces.

    leaves: what can be read, by name.  skipped: leaves of a deeper nesting, which have no place in a flat table.
    known: columns of a table of ours, by name, the keys left out; nothing for other tables.
    Raises ValueError for what holds no Parquet files, or rows that only deletes by value tell apart.
    """

    def __init__(self, source: Table | str | Path | Sequence[str | Path]) -> None:
        self.files: TableFiles = open_table(source)
        self._deleted: dict[str, np.ndarray] = {}
        self._constants: dict[str, dict[str, pa.Scalar]] = {}
        schema = self.files.schema
        if isinstance(source, Table):
            tasks = list(source.scan().plan_files())
            self._deleted = _deleted_positions(source, tasks)
            self._constants = {task.file.file_path: _constants(source, task) for task in tasks}
            for name in sorted({name for constants in self._constants.values() for name in constants}):
                if name not in schema.names:
                    schema = schema.append(pa.field(name, schema_to_pyarrow(source.schema().find_type(name))))
        found = leaves_of(schema)
        self.leaves: dict[str, Leaf] = {leaf.name: leaf for leaf in found if leaf.shape is not Shape.NESTED}
        self.known: dict[str, Column] = {}
        self._blobs: dict[str, Column] = {}
        if isinstance(source, Table) and SCHEMA_PROPERTY in source.properties:
            columns = [column for column in table_schema(source).columns if column.level is not Level.KEY]
            self.known = {column.name: column for column in columns if column.name in self.leaves}
            if table_layout(source).has_blobs:
                self._blobs = {column.name: column for column in self.known.values() if column.is_blob}
        for name, column in self._blobs.items():
            self.leaves[name] = Leaf(name, name, Shape.LIST, element_type(column))
        self.skipped = tuple(leaf.name for leaf in found if leaf.shape is Shape.NESTED)
        self._footers: dict[str, pq.FileMetaData] = {}

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def num_bytes(self) -> int:
        """Of the files."""
        return sum(file.size_bytes for file in self.files.files)

    @property
    def num_rows(self) -> int:
        """Without the deleted ones."""
        rows = sum(self._footer(file).num_rows for file in self.files.files)
        return rows - sum(len(positions) for positions in self._deleted.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result should know. Deletes were applied, whatever the audit's notes say of them."""
        kept = tuple(note for note in self.files.notes if "delete files" not in note)
        gone = sum(len(positions) for positions in self._deleted.values())
        return (*kept, f"{gone:,} rows that delete files name were left out") if gone else kept

    def is_required(self, leaf: Leaf) -> bool:
        """Whether no file can hold a null in it."""
        if leaf.name != leaf.column:
            return False
        return all(
            leaf.column in file.name_in_file and not file.schema.field(file.name_in_file[leaf.column]).nullable
            for file in self.files.files
        )

    def pieces(self, names: Sequence[str]) -> Iterator[Piece]:
        """All rows of these leaves, file by file."""
        for file in self.files.files:
            yield from self._pieces_of(file, names)

    def _pieces_of(self, file: DataFile, names: Sequence[str]) -> Iterator[Piece]:
        leaves = [self.leaves[name] for name in names]
        columns = list(dict.fromkeys(leaf.column for leaf in leaves))
        present = [name for name in columns if name in file.name_in_file]
        in_file = [file.name_in_file[name] for name in present]
        deleted, constants = self._deleted.get(file.path), self._constants.get(file.path, {})
        first = 0
        with file.parquet(list(self._blobs)) as parquet:
            for group in range(parquet.num_row_groups):
                rows = _piece_rows(parquet.metadata.row_group(group), in_file)
                for batch in parquet.iter_batches(rows, row_groups=[group], columns=in_file, use_threads=False):
                    arrays: dict[str, pa.Array] = {}
                    for name, found in zip(present, in_file):
                        arrays |= leaf_arrays(name, batch.column(found))
                    keep = _kept(deleted, first, batch.num_rows)
                    row_numbers = np.arange(first, first + batch.num_rows)
                    first += batch.num_rows
                    if keep is not None:
                        row_numbers = row_numbers[keep]
                        arrays = {name: array.filter(pa.array(keep)) for name, array in arrays.items()}
                    num_rows = batch.num_rows if keep is None else int(keep.sum())
                    for start, end in _ranges(arrays, self._blobs, num_rows):
                        part = {name: array.slice(start, end - start) for name, array in arrays.items()}
                        part = {leaf.name: self._leaf(part, leaf, end - start, constants) for leaf in leaves}
                        yield Piece(part, end - start, file.path, row_numbers[start:end])

    def _leaf(self, arrays: dict[str, pa.Array], leaf: Leaf, num_rows: int, constants: dict[str, Any]) -> pa.Array:
        if leaf.name in self._blobs and leaf.name in arrays:
            return _lists(arrays[leaf.name], self._blobs[leaf.name])
        if leaf.name in arrays:
            return arrays[leaf.name]
        if leaf.name in constants:
            return pa.repeat(constants[leaf.name], num_rows)
        kind = pa.list_(leaf.type) if leaf.shape is Shape.LIST else leaf.type
        return pa.nulls(num_rows, kind)

    def _footer(self, file: DataFile) -> pq.FileMetaData:
        if file.path not in self._footers:
            with file.parquet() as parquet:
                self._footers[file.path] = parquet.metadata
        return self._footers[file.path]


def _piece_rows(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """Rows of a piece of about PIECE_BYTES: of plain lists the elements count, whatever they take encoded."""
    wanted, num_bytes = {name.split(".")[0] for name in columns}, 0
    for index in range(group.num_columns):
        leaf = group.column(index)
        if leaf.path_in_schema.split(".")[0] in wanted:
            num_bytes += max(leaf.total_uncompressed_size, 8 * leaf.num_values)
    return int(np.clip(PIECE_BYTES * group.num_rows / max(num_bytes, 1), 1, MAX_PIECE_ROWS))


def _ranges(arrays: dict[str, pa.Array], blobs: Container[str], num_rows: int) -> list[tuple[int, int]]:
    """Rows in stretches whose lists take at most MAX_PIECE_BYTES."""
    row_bytes = np.zeros(num_rows, np.int64)
    for name, array in arrays.items():
        if name in blobs:
            if pa.types.is_dictionary(array.type):
                row_bytes += (
                    blob_bytes(array.dictionary)[array.indices.fill_null(0).to_numpy()] if len(array.dictionary) else 0
                )
            else:
                row_bytes += blob_bytes(array)
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            row_bytes += 8 * pc.fill_null(array.value_lengths(), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return greedy_ranges((MAX_PIECE_BYTES, row_bytes))


def _lists(blobs: pa.Array, column: Column) -> pa.Array:
    if blobs.null_count:
        raise ValueError(
            f"column {column.name}: blobs without nulls required, found {blobs.null_count}; store empty values"
        )
    if pa.types.is_dictionary(blobs.type):
        blobs = take_blobs(blobs.dictionary, blobs.indices.to_numpy())
    return lists_from_blobs(blobs, column)


def _deleted_positions(table: Table, tasks: list[FileScanTask]) -> dict[str, np.ndarray]:
    """Path -> rows that position-delete files name, rising. pyiceberg's reader has no public form of it."""
    by_value = {
        file.file_path
        for task in tasks
        for file in task.delete_files
        if file.content is DataFileContent.EQUALITY_DELETES
    }
    if by_value:
        raise ValueError(
            f"{'.'.join(table.name())}: position deletes at most required, found {len(by_value)} files of equality deletes; have "
            "the engine that wrote them rewrite the data files first"
        )
    deletes = _read_all_delete_files(table.io, tasks)
    paths = {task.file.file_path for task in tasks}
    return {
        path: np.unique(np.concatenate([chunk.to_numpy() for chunk in positions]))
        for path, positions in deletes.items()
        if path in paths
    }


def _constants(table: Table, task: FileScanTask) -> dict[str, pa.Scalar]:
    """Values that all rows of a file have by their partition."""
    spec = table.specs()[task.file.spec_id]
    constants = {}
    for position, field in enumerate(spec.fields):
        name = table.schema().find_column_name(field.source_id)
        if isinstance(field.transform, IdentityTransform) and name is not None:
            kind = schema_to_pyarrow(table.schema().find_type(name))
            constants[name] = pa.scalar(task.file.partition[position], kind)
    return constants


def _kept(deleted: np.ndarray | None, first: int, num_rows: int) -> np.ndarray | None:
    """Which rows stay, [N] bool; None where all do."""
    if deleted is None:
        return None
    low, high = np.searchsorted(deleted, [first, first + num_rows])
    if low == high:
        return None
    keep = np.ones(num_rows, bool)
    keep[deleted[low:high] - first] = False
    return keep
