"""What a Parquet file gave, as deduplicated batches: blobs as dictionaries, plain lists deduplicated by value.

Files of our layouts need nothing but a cast. Those of other engines may hold several dictionaries in a row group, pages
without one, other units and widths, or nulls that Iceberg forbids: what fits comes out right, the rest is said. Arrow's
binary arrays end at MAX_BINARY_BYTES; row groups that hold more come in parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.dedup import encoding
from reqdedup.dedup.encoding import BLOB_TYPE, blobs_from_lists, element_type, exact_cast
from reqdedup.dedup.rows import compact_blobs, concat_by_value
from reqdedup.dedup.stored import has_offsets, is_list
from reqdedup.schema import NUMBER_WIDTH_BYTES, Column

_FIELD_ID = b"PARQUET:field_id"


def readable(path: str, pieces: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The pieces; whatever goes wrong with the file's bytes names the file."""
    try:
        yield from pieces
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> Exception:
    """The same trouble with the file's name: the storage failed (OSError), or the file is damaged (ValueError)."""
    found = " ".join(str(error).split())
    if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
        return type(error)(
            f"{path}: the file's storage refused or did not answer ({found}); check that it runs, its endpoint and "
            "credentials (s3.* of the catalog's properties), and try again"
        )
    return ValueError(
        f"{path}: a whole Parquet file required, found a damaged one ({found}); restore it or roll the table back"
    )


@dataclass(frozen=True)
class FileColumns:
    """Which of a source's columns a file has.

    names: what the file calls each of them.  lists: those that are lists there.  found: all columns of the file.
    has_ids: the file says Iceberg's field ids, so that a name proves nothing.  ids, fields: those of its columns, and
        "id name" of each.
    """

    names: Mapping[str, str]
    lists: frozenset[str]
    found: tuple[str, ...]
    has_ids: bool
    ids: tuple[int, ...]
    fields: frozenset[str]


def file_columns(footer: pq.FileMetaData, names: Iterable[str], field_ids: Mapping[str, int]) -> FileColumns:
    """The columns of a file: by Iceberg's field id, as far as both say one, else by name."""
    schema = footer.schema.to_arrow_schema()
    id_of = {field.name: int(field.metadata[_FIELD_ID]) for field in schema if _FIELD_ID in (field.metadata or {})}
    by_id = {field_id: name for name, field_id in id_of.items()}
    held = {}
    for name in names:
        wanted = field_ids.get(name)
        if wanted is not None and wanted in by_id:
            held[name] = by_id[wanted]
        elif name in schema.names and (wanted is None or name not in id_of):
            held[name] = name
    lists = frozenset(name for name, theirs in held.items() if is_list(schema.field(theirs).type))
    fields = frozenset(f"{field_id} {name}" for name, field_id in id_of.items())
    return FileColumns(held, lists, tuple(schema.names), bool(id_of) and bool(field_ids), tuple(id_of.values()), fields)


def deduplicated(path: str, table: pa.Table, columns: list[Column]) -> pa.RecordBatch:
    """One batch of what a file gave: lists to blobs, columns that the file does not have yet to nulls."""
    arrays, fields = [], []
    for column in columns:
        wanted = BLOB_TYPE if column.is_blob else element_type(column)
        if column.name not in table.column_names:
            array = pa.nulls(len(table), wanted)
        else:
            array = _column(path, table.column(column.name), column, wanted)
        arrays.append(array)
        fields.append(pa.field(column.name, wanted, nullable=column.nullable))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _column(path: str, chunked: pa.ChunkedArray, column: Column, wanted: pa.DataType) -> pa.Array:
    try:
        array = _one_array(chunked, column)
        if array.type != wanted:
            array = exact_cast(array, wanted)
        if array.null_count and not column.nullable:
            raise ValueError(f"found {array.null_count} nulls")
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: column {column.name}: {column.kind.value} of "
            f"{column.dtype}{'' if column.nullable else ' without nulls'} required, another engine wrote "
            f"{chunked.type}: {error}"
        ) from error
    return array


def _one_array(chunked: pa.ChunkedArray, column: Column) -> pa.Array:
    if column.is_blob and pa.types.is_dictionary(chunked.type):
        if chunked.num_chunks == 1:
            return chunked.chunk(0)
        # a chunk of pages without a dictionary: some other writer made the file
        return compact_blobs(chunked.unify_dictionaries().combine_chunks())
    array = chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    if not column.is_blob:
        return array
    return blobs_from_lists(array, column).dictionary_encode() if is_list(array.type) else array.dictionary_encode()


def dictionary_leaves(footer: pq.FileMetaData, names: list[str]) -> list[str]:
    """Which of these blobs can be read as dictionaries.

    pyarrow 26 cannot where another writer chose delta encodings, or left out dictionaries and put more into a row group
    than one may hold.
    """
    chosen = []
    for index, name in enumerate(footer.schema.names):
        if name in names:
            chunks = [footer.row_group(i).column(index) for i in range(footer.num_row_groups)]
            encodings = {one for chunk in chunks for one in chunk.encodings}
            fits = all(chunk.total_uncompressed_size <= encoding.MAX_BINARY_BYTES for chunk in chunks)
            if fits and not encodings & {"DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"}:
                chosen.append(name)
    return chosen


def fitting(table: pa.Table, columns: list[Column], num_rows: int) -> Iterator[pa.Table]:
    """The rows in parts of which no column passes MAX_BINARY_BYTES; nearly always one."""
    if len(table.column_names) == 0:  # of columns that the file does not have yet
        table = pa.table({"": pa.nulls(num_rows)})
    present = [column for column in columns if column.name in table.column_names]
    if len(table) < 2 or all(
        _binary_bytes(table.column(c.name), c) <= encoding.MAX_BINARY_BYTES for c in present if _is_binary(c)
    ):
        yield table
        return
    for part in (table.slice(0, len(table) // 2), table.slice(len(table) // 2)):
        yield from fitting(part, columns, len(part))


def _is_binary(column: Column) -> bool:
    return column.is_blob or has_offsets(element_type(column))


def _binary_bytes(chunked: pa.ChunkedArray, column: Column) -> int:
    """Bytes of the one binary or string array that the chunks are to become."""
    if column.is_blob and is_list(chunked.type):
        return sum(len(chunk.flatten()) for chunk in chunked.chunks) * NUMBER_WIDTH_BYTES[column.dtype]
    if not pa.types.is_dictionary(chunked.type):
        return int(chunked.nbytes)
    if chunked.num_chunks == 1:
        return 0
    return sum(compact_blobs(chunk).dictionary.nbytes for chunk in chunked.chunks)


def merged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Neighbours together as long as no column passes MAX_BINARY_BYTES."""
    together: list[pa.RecordBatch] = []
    sizes = np.zeros(0, np.int64)
    for batch in batches:
        if together:  # a batch that stays alone is not weighed
            sizes = sizes if len(together) > 1 else _held_bytes(together[0])
            sizes = sizes + _held_bytes(batch)
            if np.any(sizes > encoding.MAX_BINARY_BYTES):
                yield concat_by_value(together)
                together = []
        together.append(batch)
    if together:
        yield concat_by_value(together)


def _held_bytes(batch: pa.RecordBatch) -> np.ndarray:
    """Bytes of each column that become one binary or string array, [C] int64."""
    return np.array([_array_bytes(array) for array in batch.columns], np.int64)


def _array_bytes(array: pa.Array) -> int:
    if pa.types.is_dictionary(array.type):
        return int(array.dictionary.nbytes)
    return int(array.nbytes) if has_offsets(array.type) else 0
