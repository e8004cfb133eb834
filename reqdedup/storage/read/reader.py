"""Reading Parquet files as deduplicated batches, one per row group; blobs arrive as DictionaryArrays, zero copy.

Which files a table's snapshot has, `table_source` says. Tables of plain lists are read too, for control: their lists
are deduplicated by value, which costs what the lists weigh.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import FileIO

from reqdedup.dedup import encoding
from reqdedup.dedup.readable import Readable
from reqdedup.dedup.rows import take_rows
from reqdedup.dedup.source import digest
from reqdedup.schema import ITEM_ID, USER_ID, Column, EngagementSchema
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.iceberg.reference import open_store, store_properties
from reqdedup.storage.iceberg.small_files import SmallFiles
from reqdedup.storage.iceberg.vocabulary import ITEM_KEY, KeysOf
from reqdedup.storage.read.file_batches import (
    FileColumns,
    deduplicated,
    dictionary_leaves,
    file_columns,
    fitting,
    merged,
    readable,
)
from reqdedup.storage.read.open_file import OpenFile, OpenFiles, open_parquet

LIST_CHUNK_BYTES = 64 * 2**20
"""Plain lists are read and deduplicated in pieces of about this many uncompressed bytes."""

BLOB_BYTES_TOGETHER = 4 * 2**20
"""Row groups with fewer bytes of blobs may be read as one batch: rows weigh more than putting dictionaries together."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of a data file; bucket is its file's partition, None if the table has no buckets."""

    path: str
    index: int
    num_rows: int
    bucket: int | None = None


class FileSource(Readable):
    """Parquet files of one engagement table as deduplicated batches, in the order of the paths given.

    paths: local paths, file:// URIs, or any URI that `io` opens.  schema: of the batches; every column must be in the
    files unless it is nullable.  io: a pyiceberg FileIO; needed for anything but local files.
    merge_pieces: give one batch per row group for plain lists too; off if requests are not contiguous anyway.
    known_columns: all that a file without field ids may hold. A nullable column may be missing in an older file and is
        null there, but not beside one that nobody knows: that is a renamed column or a damaged footer. None: any is.
    field_ids: Iceberg's id of each column, by which it is found in a file, whatever it is called there.
    known_fields: "id name" of every column that the table has had. A file with another pair has a damaged footer, and
        is not read if it lacks a column. None: any is known.
    item_files: Parquet files of the vocabulary that the items' ids are of.
    """

    def __init__(
        self,
        paths: Iterable[str],
        schema: EngagementSchema,
        *,
        io: FileIO | None = None,
        buckets: Sequence[int | None] | None = None,
        num_buckets: int | None = None,
        merge_pieces: bool = True,
        known_columns: Iterable[str] | None = None,
        field_ids: Mapping[str, int] | None = None,
        known_fields: Iterable[str] | None = None,
        item_files: Sequence[str] = (),
    ) -> None:
        self._paths = list(paths)
        self._schema = schema
        self._io = io
        self._bucket_of_path = dict(zip(self._paths, buckets)) if buckets is not None else {}
        self._num_buckets = num_buckets
        self._by_bucket: dict[int | None, list[str]] = {}
        self._merge_pieces = merge_pieces
        self._known_columns = None if known_columns is None else frozenset(known_columns)
        self._field_ids = dict(field_ids or {})
        self._known_fields = None if known_fields is None else frozenset(known_fields)
        self._item_files = list(item_files)
        self._footers: dict[str, pq.FileMetaData] = {}
        self._small_files = SmallFiles()
        self._file_columns: dict[str, FileColumns] = {}
        self._encoded: dict[str, list[str]] = {}

    @property
    def schema(self) -> EngagementSchema:
        return self._schema

    @property
    def paths(self) -> list[str]:
        """The data files, in reading order."""
        return list(self._paths)

    @property
    def io(self) -> FileIO | None:
        """What opens the files; None if they are local and no FileIO was given."""
        return self._io

    def reading(self) -> dict[str, Any]:
        """How columns are found in the files: keyword arguments that JSON can hold."""
        known = None if self._known_columns is None else sorted(self._known_columns)
        fields = None if self._known_fields is None else sorted(self._known_fields)
        return {
            "merge_pieces": self._merge_pieces,
            "known_columns": known,
            "field_ids": self._field_ids,
            "known_fields": fields,
            "item_files": self._item_files,
        }

    def item_keys(self, item_id: np.ndarray) -> np.ndarray | None:
        if not self._item_files:
            return None
        keys = KeysOf(item_id)
        for path in self._item_files:
            keys.look_in(open_parquet(path, self._io, footer=None, dictionaries=[]).read([ITEM_ID, ITEM_KEY]))
        return keys.found

    def with_io(self, io: FileIO) -> FileSource:
        """The same files, opened by another FileIO."""
        other = copy.copy(self)
        other._io = io
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs, without a credential: those are that process's own; nor what it reads itself."""
        read: dict[str, Any] = {"_footers": {}, "_file_columns": {}, "_encoded": {}, "_by_bucket": {}}
        store = None if self._io is None else store_properties(self._io)
        return {**self.__dict__, **read, "_io": None, "_store": store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        store = state.pop("_store")
        self.__dict__.update(state)
        if store is not None and self._paths:
            self._io = open_store(store, self._paths[0])

    @property
    def num_buckets(self) -> int | None:
        """Bucket count of the files; None if they are not known to be bucketed by user."""
        return self._num_buckets

    @property
    def num_rows(self) -> int:
        return sum(self.footer(path).num_rows for path in self._paths)

    def footer(self, path: str) -> pq.FileMetaData:
        """The Parquet footer of one file, read once."""
        if path not in self._footers:
            with self._open(path) as file:
                self._footers[path] = file.metadata
        return self._footers[path]

    def fingerprint(self) -> dict[str, str]:
        """Which rows are read in which order, wherever the files lie: names, rows and bytes of their row groups."""
        files = []
        for path in self._paths:
            footer = self.footer(path)
            groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
            files.append([path.rpartition("/")[2], [[group.num_rows, group.total_byte_size] for group in groups]])
        return {"files": digest(files)}

    def name_in(self, path: str, column: str) -> str | None:
        """What a file calls a column; None if it does not have it."""
        return self._columns_of(path).names.get(column)

    def _columns_of(self, path: str) -> FileColumns:
        if path not in self._file_columns:
            names = {*self._schema.names, USER_ID}
            self._file_columns[path] = file_columns(self.footer(path), names, self._field_ids)
        return self._file_columns[path]

    def row_groups(self, users: np.ndarray | pa.Array | None = None, *, bucket: int | None = None) -> list[RowGroup]:
        """All row groups in reading order, or those of one bucket; with `users` only those that may hold one of these.

        Footers of other buckets are not read.
        """
        wanted = None if users is None else _user_array(users)
        buckets = None
        if wanted is not None and self._num_buckets:
            buckets = set(buckets_of(wanted, self._num_buckets).tolist()) if len(wanted) else set()
        groups = []
        for path in self._paths if bucket is None else self._paths_of(bucket):
            of_path = self._bucket_of_path.get(path)
            if buckets is not None and of_path is not None and of_path not in buckets:
                continue
            footer = self.footer(path)
            for index in range(footer.num_row_groups):
                group = footer.row_group(index)
                if group.num_rows and (wanted is None or _may_hold(group, self.name_in(path, USER_ID), wanted)):
                    groups.append(RowGroup(path, index, group.num_rows, of_path))
        return groups

    def _paths_of(self, bucket: int) -> list[str]:
        if not self._by_bucket:
            found: dict[int | None, list[str]] = {}
            for path, of_path in self._bucket_of_path.items():
                found.setdefault(of_path, []).append(path)
            self._by_bucket = found  # at once: threads read beside one another
        return self._by_bucket.get(bucket, [])

    def batches(
        self, columns: Sequence[str] | None = None, users: np.ndarray | pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Deduplicated batches, one per row group; more if a column would pass `encoding.MAX_BINARY_BYTES`, and one
        per piece of a row group of a shuffled list table.

        columns: exactly these, in schema order; None means all.  users: only rows of these user ids; files of other
        buckets and row groups outside the ids' range are not read.
        """
        wanted = None if users is None else _user_array(users)
        with OpenFiles(self._open) as files:
            for group in self.row_groups(wanted):
                yield from self._read(files, [group], self._columns(columns), wanted)

    def read_row_group(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """One row group as one deduplicated batch. Raises ValueError for one that is too large for that."""
        batches = list(self.stream([group], columns))
        if len(batches) != 1:
            raise ValueError(
                f"{group.path}: at most {encoding.MAX_BINARY_BYTES:,} bytes a column in row group {group.index} "
                "required, found more, which no one batch holds; compact the table (force=True, --force), which cuts "
                "row groups smaller"
            )
        return batches[0]

    def stream(
        self,
        groups: Iterable[RowGroup],
        columns: Sequence[str] | None = None,
        *,
        rows_together: int = 0,
        use_threads: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """These row groups in this order, one batch each (or more, as in `batches`); a file stays
        open from one to the next.

        rows_together: neighbours in a file come as one batch of at most so many rows, and BLOB_BYTES_TOGETHER of blobs:
        a batch has its fixed cost. Their dictionaries become one, by value.
        use_threads: decode the columns of a batch at once; off if whole streams run beside one another.
        """
        chosen = self._columns(columns)
        with OpenFiles(self._open) as files:
            for together in self._neighbours(
                groups, rows_together, [column.name for column in chosen if column.is_blob]
            ):
                yield from merged(self._read(files, together, chosen, None, use_threads=use_threads))

    def _neighbours(self, groups: Iterable[RowGroup], max_rows: int, blobs: Sequence[str]) -> Iterator[list[RowGroup]]:
        """Row groups that follow one another in a file, together while they hold at most `max_rows`."""
        together: list[RowGroup] = []
        num_rows = num_bytes = 0
        leaves: tuple[str, list[int]] = ("", [])
        for group in groups:
            footer = self.footer(group.path)
            if leaves[0] != group.path:
                held = {self.name_in(group.path, name) for name in blobs}
                leaves = (group.path, [i for i, name in enumerate(footer.schema.names) if name in held])
            if len(leaves[1]) < len(blobs):  # lists, which are read in pieces
                added = BLOB_BYTES_TOGETHER
            else:
                added = sum(footer.row_group(group.index).column(i).total_uncompressed_size for i in leaves[1])
            if together:
                follows = (group.path, group.index) == (together[-1].path, together[-1].index + 1)
                too_much = num_rows + group.num_rows > max_rows or num_bytes + added > BLOB_BYTES_TOGETHER
                if not follows or too_much:
                    yield together
                    together, num_rows, num_bytes = [], 0, 0
            together.append(group)
            num_rows, num_bytes = num_rows + group.num_rows, num_bytes + added
        if together:
            yield together

    def _columns(self, names: Sequence[str] | None) -> list[Column]:
        if names is None:
            return list(self._schema.columns)
        unknown = sorted(set(names) - set(self._schema.names))
        if unknown:
            raise ValueError(f"no such columns: {', '.join(unknown)}; there are {', '.join(self._schema.names)}")
        return [column for column in self._schema.columns if column.name in set(names)]

    def _encoded_blobs(self, path: str) -> list[str]:
        """Blobs that can be read as dictionaries; looked up once, since it takes a look at every row group."""
        if path not in self._encoded:
            names = [name for column in self._schema.blobs if (name := self.name_in(path, column.name))]
            self._encoded[path] = dictionary_leaves(self.footer(path), names)
        return self._encoded[path]

    def _open(self, path: str, columns: Sequence[Column] = ()) -> pq.ParquetFile:
        """A file of ours, opened for these columns: blobs that can be dictionaries come as such."""
        encoded = self._encoded_blobs(path) if columns else []
        held = [self.name_in(path, column.name) for column in columns if column.is_blob]
        blobs = [name for name in held if name in encoded]
        footer, kept = self._footers.get(path), self._small_files
        return open_parquet(path, self._io, footer=footer, dictionaries=blobs, small_files=kept)

    def _read(
        self,
        files: OpenFiles,
        groups: list[RowGroup],
        columns: list[Column],
        users: np.ndarray | None,
        *,
        use_threads: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """Row groups of one file; more than one only if no column is a list."""
        path = groups[0].path
        names = {column.name for column in columns}
        read = columns if users is None or USER_ID in names else [self._schema[USER_ID], *columns]
        pieces = readable(path, self._pieces(files.open(path, read), groups, read, use_threads=use_threads))
        if self._merge_pieces:
            pieces = merged(pieces)
        for batch in pieces:
            if users is not None:
                batch = take_rows(batch, np.isin(batch.column(USER_ID).to_numpy(), users))
                if batch.num_rows == 0:
                    continue
                batch = batch.select([column.name for column in columns])
            yield batch

    def _pieces(
        self, opened: OpenFile, groups: list[RowGroup], columns: list[Column], *, use_threads: bool
    ) -> Iterator[pa.RecordBatch]:
        group, file, columns_of = groups[0], opened.file, self._columns_of(groups[0].path)
        if opened.names is None:  # once per file
            opened.names = self._present(group.path, columns_of, columns)
        names, ours = list(opened.names.values()), list(opened.names)
        lists = [name for name in ours if name in columns_of.lists and self._is_blob(name)]
        if not lists:
            table = file.read_row_groups([one.index for one in groups], columns=names, use_threads=use_threads)
            num_rows = sum(one.num_rows for one in groups)
            table = table.select(names).rename_columns(ours)
            yield from (deduplicated(group.path, part, columns) for part in fitting(table, columns, num_rows))
            return
        prefixes = tuple(f"{opened.names[name]}." for name in lists)
        footer = file.metadata.row_group(group.index)
        leaves = [footer.column(i) for i in range(footer.num_columns)]
        row_bytes = (
            sum(8 * leaf.num_values for leaf in leaves if leaf.path_in_schema.startswith(prefixes)) / group.num_rows
        )
        rows = int(np.clip(LIST_CHUNK_BYTES / max(row_bytes, 1), 1, 65536))
        for piece in file.iter_batches(
            batch_size=rows, row_groups=[group.index], columns=names, use_threads=use_threads
        ):
            table = pa.Table.from_batches([piece]).select(names).rename_columns(ours)
            parts = fitting(table, columns, piece.num_rows)
            yield from (deduplicated(group.path, part, columns) for part in parts)

    def _is_blob(self, name: str) -> bool:
        return name in self._schema.names and self._schema[name].is_blob

    def _present(self, path: str, held: FileColumns, columns: list[Column]) -> dict[str, str]:
        """What the file calls each column that it has. Raises ValueError for one that it lacks and must have."""
        if held.has_ids:
            strange = self._known_fields is not None and not self._known_fields.issuperset(held.fields)
        else:
            strange = self._known_columns is not None and not self._known_columns.issuperset(held.found)
        twice = len(set(held.ids)) < len(held.ids)
        for column in columns:
            if twice or (column.name not in held.names and (strange or not column.nullable)):
                raise ValueError(
                    f"{path}: column {column.name} required, found {list(held.found)}; if another engine renamed or "
                    "dropped it, give it its name back there, or read the other columns"
                )
        return {column.name: held.names[column.name] for column in columns if column.name in held.names}


def _user_array(users: np.ndarray | pa.Array) -> np.ndarray:
    return np.unique(np.asarray(users, dtype=np.int64))


def _may_hold(group: pq.RowGroupMetaData, user_column: str | None, users: np.ndarray) -> bool:
    """Whether one of the sorted `users` lies in the row group's range of user_id, as the file calls it."""
    for index in range(group.num_columns):
        leaf = group.column(index)
        if leaf.path_in_schema == user_column:
            statistics = leaf.statistics
            if statistics is None or not statistics.has_min_max:
                return True
            at = int(np.searchsorted(users, statistics.min))
            return at < len(users) and bool(users[at] <= statistics.max)
    return True
