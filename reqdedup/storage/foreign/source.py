"""The rows of a table that a team already has, in pieces of bounded memory: leaf columns by name, deletes applied.

A leaf is a scalar or one list of scalars: `user.country`, `history.item_id`. Rows that another engine
has deleted through position-delete files are left out; equality deletes are refused. Columns that are only in an
Iceberg table's partition (as after `add_files` on Hive folders) get their partition's value. Of a table of ours, blobs
are decoded and levels and widths known: so it is rewritten after another engine deleted rows, or from one layout into
another.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.table import FileScanTask, Table

from reqdedup.arrays.ranges import greedy_ranges
from reqdedup.dedup.encoding import element_type, lists_from_blobs, take_blobs
from reqdedup.dedup.parts import blob_bytes
from reqdedup.display import counted
from reqdedup.schema import Column, Level
from reqdedup.storage.foreign.files import DataFile, TableFiles
from reqdedup.storage.foreign.folder import refuse_table
from reqdedup.storage.foreign.leaves import Leaf, Shape, is_text, leaf_arrays, leaves_of, relist, uuid_text
from reqdedup.storage.foreign.table import open_table
from reqdedup.storage.iceberg.layout import SCHEMA_PROPERTY, table_layout, table_schema
from reqdedup.storage.iceberg.manifests import scan_tasks
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.scan import deleted_positions, projected_batches
from reqdedup.storage.tasks.parts import grouped

PIECE_BYTES = 16 * 2**20
"""Of a piece's rows, laid down as the plain lists that they are."""

MAX_PIECE_BYTES = 2 * PIECE_BYTES
"""Of the lists of a piece: where long ones lie together, it is cut."""

MAX_PIECE_ROWS = 2**16


@dataclass(frozen=True)
class Piece:
    """Some rows of a file.

    arrays: by leaf name; a leaf that the file does not have is null.  rows: their numbers in it, [N]; -1 if unknown.
    """

    arrays: dict[str, pa.Array]
    num_rows: int
    path: str
    rows: np.ndarray

    def slice(self, start: int, end: int) -> Piece:
        """Rows `start` to `end` of it."""
        arrays = {name: array.slice(start, end - start) for name, array in self.arrays.items()}
        return Piece(arrays, end - start, self.path, self.rows[start:end])


class Stretch(NamedTuple):
    """A row group. file: number of its file."""

    file: int
    group: int
    num_rows: int


class RowSource:
    """A table's rows as pieces.

    table: that is read, if it is one of a catalog.
    leaves: what can be read, by name; UUIDs as text, and maps and lists of lists whole.
    known: columns of a table of ours, by name, the keys left out; nothing for other tables.
    vocabularies: names of those that dense ids of a table of ours are of, by column.
    Raises ValueError for what holds no Parquet files, for rows that only deletes by value tell apart, and for a folder
    that belongs to a table of another format.
    """

    def __init__(self, source: Table | str | Path | Sequence[str | Path]) -> None:
        self.files: TableFiles = open_table(source)
        refuse_table(self.files.name, self.files.table_format)
        self.table = source if isinstance(source, Table) else None
        self._tasks: list[FileScanTask] = []
        self._deleted: dict[str, np.ndarray] = {}
        if self.table is not None:
            self._tasks = scan_tasks(self.table)
            self._deleted = deleted_positions(self.table, self._tasks)
        found = self.files.leaves
        self.leaves: dict[str, Leaf] = {leaf.name: _as_read(leaf) for leaf in found if leaf.shape is not Shape.NESTED}
        self._uuids = {leaf.name for leaf in found if leaf.is_uuid}
        self.known: dict[str, Column] = {}
        self.vocabularies: dict[str, str] = {}
        if self.table is not None and SCHEMA_PROPERTY in self.table.properties:
            columns = [column for column in table_schema(self.table).columns if column.name in self.leaves]
            self.known = {column.name: column for column in columns if column.level is not Level.KEY}
            self.vocabularies = {column.name: column.vocabulary for column in columns if column.vocabulary}
        self._blobs = stored_blobs(source)
        for name, column in self._blobs.items():
            self.leaves[name] = Leaf(name, name, Shape.LIST, element_type(column))
        self.leaves |= {whole.name: whole for whole in self.files.wholes}
        self._footers: dict[str, pq.FileMetaData] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to read it: neither catalog nor footers."""
        table = None if self.table is None else PortableTable(self.table)
        return {**self.__dict__, "table": table, "_footers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.table = None if state["table"] is None else state["table"].table

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
    def intervals(self) -> frozenset[str]:
        """Leaves that are spans of time in Parquet: Arrow gives their 12 bytes and does not say what they are."""
        found: set[str] = set()
        for file in self.files.files if self.table is None else ():
            schema = self._footer(file).schema
            numbered = enumerate(leaf.name for leaf in leaves_of(file.schema))
            found |= {name for number, name in numbered if schema.column(number).converted_type == "INTERVAL"}
        return frozenset(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result should know. Deletes were applied, whatever the audit's notes say of them."""
        kept = tuple(note for note in self.files.notes if "delete files" not in note)
        gone = sum(len(positions) for positions in self._deleted.values())
        return (*kept, f"left out, as delete files name them: {counted(gone, 'row')}") if gone else kept

    @property
    def independent_reader(self) -> str | None:
        """The reader of `independent_pieces`, in words; None if there is no other than this one."""
        return None if self.table is None else "pyiceberg's own scan"

    def parts(self) -> list[tuple[Stretch, ...]]:
        """All rows in parts for several processes: neighbouring row groups, in the order of the files."""
        stretches = []
        for number, file in enumerate(self.files.files):
            footer = self._footer(file)
            rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            stretches += [Stretch(number, group, count) for group, count in enumerate(rows)]
        return grouped(stretches, lambda one: one.num_rows)

    def pieces(self, names: Sequence[str], part: Sequence[Stretch] | None = None) -> Iterator[Piece]:
        """The rows of these leaves, file by file: all, or those of a part."""
        if part is None:
            for file in self.files.files:
                yield from self._pieces_of(file, names)
            return
        for number, stretches in groupby(part, key=lambda one: one.file):
            yield from self._pieces_of(self.files.files[number], names, [one.group for one in stretches])

    def independent_parts(self) -> list[int]:
        """Parts of `independent_pieces`: files."""
        return list(range(len(self._tasks)))

    def independent_pieces(self, names: Sequence[str], part: int | None = None) -> Iterator[Piece]:
        """The same rows in the same pieces or others, as pyiceberg projects them; the rows' numbers are not known.

        part: one of the files, all of them by default.
        """
        if self.table is None:
            raise ValueError(f"{self.name}: an Iceberg table required for another reader, found a {self.files.kind}")
        tops = list(dict.fromkeys(self.leaves[name].column for name in names))
        schema = self.table.scan().projection().select(*tops)
        tasks = self._tasks if part is None else [self._tasks[part]]
        for batch in projected_batches(self.table, tasks, schema, _piece_rows):
            arrays: dict[str, pa.Array] = {}
            for column in batch.schema.names:
                arrays |= leaf_arrays(column, batch.column(column))
            yield from self._cut(arrays, names, batch.num_rows, self.name, np.full(batch.num_rows, -1), {})

    def _pieces_of(self, file: DataFile, names: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Piece]:
        in_file = file.columns(names)
        deleted, first = self._deleted.get(file.path), 0
        with file.parquet(list(self._blobs)) as parquet:
            for group in range(parquet.num_row_groups):
                if groups is not None and group not in groups:
                    first += parquet.metadata.row_group(group).num_rows
                    continue
                rows = _piece_rows(parquet.metadata.row_group(group), in_file)
                for batch in file.batches(parquet, rows, row_groups=[group], columns=in_file):
                    arrays = file.arrays(batch, names)
                    keep = _kept(deleted, first, batch.num_rows)
                    row_numbers = np.arange(first, first + batch.num_rows)
                    first += batch.num_rows
                    if keep is not None:
                        row_numbers = row_numbers[keep]
                        arrays = {name: array.filter(pa.array(keep)) for name, array in arrays.items()}
                    yield from self._cut(arrays, names, len(row_numbers), file.path, row_numbers, file.constants)

    def _cut(
        self,
        arrays: dict[str, pa.Array],
        names: Sequence[str],
        num_rows: int,
        path: str,
        row_numbers: np.ndarray,
        constants: dict[str, pa.Scalar],
    ) -> Iterator[Piece]:
        for start, end in _ranges(arrays, self._blobs, num_rows):
            part = {name: array.slice(start, end - start) for name, array in arrays.items()}
            part = {name: self._leaf(part, self.leaves[name], end - start, constants) for name in names}
            yield Piece(part, end - start, path, row_numbers[start:end])

    def _leaf(self, arrays: dict[str, pa.Array], leaf: Leaf, num_rows: int, constants: dict[str, Any]) -> pa.Array:
        kind = pa.list_(leaf.type) if leaf.shape is Shape.LIST else leaf.type
        if leaf.name in arrays:
            found = arrays[leaf.name]
            if leaf.name in self._blobs:
                return _lists(found, self._blobs[leaf.name])
            return uuid_text(found) if leaf.name in self._uuids else self._promoted(found, leaf)
        if leaf.name in constants:
            found = pa.repeat(constants[leaf.name], num_rows)
            return uuid_text(found) if leaf.name in self._uuids else found
        return pa.nulls(num_rows, kind)

    def _promoted(self, array: pa.Array, leaf: Leaf) -> pa.Array:
        """An Iceberg column in the table's type, which may be wider than the file's; finer times
        are cut, as pyiceberg does."""
        if self.table is None or is_text(leaf.type):
            return array
        if leaf.shape is Shape.NESTED:
            return array.cast(leaf.type)
        if leaf.shape is Shape.LIST:
            values = array.flatten()
            return array if values.type == leaf.type else relist(array, values.cast(leaf.type, safe=False))
        if pa.types.is_dictionary(array.type) or array.type == leaf.type:
            return array
        return array.cast(leaf.type, safe=not pa.types.is_timestamp(leaf.type))

    def _footer(self, file: DataFile) -> pq.FileMetaData:
        if file.path not in self._footers:
            with file.parquet() as parquet:
                self._footers[file.path] = parquet.metadata
        return self._footers[file.path]


def stored_blobs(source: object) -> dict[str, Column]:
    """The columns of a table of ours that are sequences in binary values, by name; nothing for any other source."""
    if not isinstance(source, Table) or SCHEMA_PROPERTY not in source.properties or not table_layout(source).has_blobs:
        return {}
    return {column.name: column for column in table_schema(source).blobs}


def _as_read(leaf: Leaf) -> Leaf:
    return replace(leaf, type=pa.string(), is_uuid=False) if leaf.is_uuid else leaf


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


def _kept(deleted: np.ndarray | None, first: int, num_rows: int) -> np.ndarray | None:
    """Which rows stay, [N] bool; None if all do."""
    if deleted is None:
        return None
    low, high = np.searchsorted(deleted, [first, first + num_rows])
    if low == high:
        return None
    keep = np.ones(num_rows, bool)
    keep[deleted[low:high] - first] = False
    return keep
