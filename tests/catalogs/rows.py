"""What a log holds, row by row, in a form that two ways of reading it can be compared by."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.fs
from pyiceberg.table import Table

from reqdedup.dedup.encoding import blobs_from_lists
from reqdedup.schema import KEYS, EngagementSchema


def plain(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """The rows of deduplicated batches with every blob on its own row, by user, request and item."""
    pieces = []
    for batch in batches:
        columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        pieces.append(pa.table(columns, names=batch.schema.names))
    return _sorted(pa.concat_tables(pieces))


def scanned(table: Table, schema: EngagementSchema) -> pa.Table:
    """The rows as pyiceberg itself reads them; lists as blobs."""
    found = table.scan().to_arrow()
    columns = []
    for column in schema.columns:
        array = found.column(column.name).combine_chunks()
        if column.is_blob:
            array = blobs_from_lists(array, column) if pa.types.is_list(array.type) else array.cast(pa.binary())
        columns.append(array)
    return _sorted(pa.table(columns, names=list(schema.names)))


def stored_files(table: Table, location: str | None = None) -> list[str]:
    """Paths of all files that lie under the table's location, part of a snapshot or not."""
    where = (location or table.location()).rstrip("/")
    scheme, _, path = where.rpartition("://")
    filesystem = table.io.fs_by_scheme(scheme or "file", path.partition("/")[0])  # type: ignore[attr-defined]
    selector = pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True)
    return [info.path for info in filesystem.get_file_info(selector) if info.type == pyarrow.fs.FileType.File]


def _sorted(table: pa.Table) -> pa.Table:
    keys = [(name, "ascending") for name in KEYS if name in table.column_names]
    return table.sort_by(keys).combine_chunks().replace_schema_metadata(None)


def same(left: pa.Table, right: pa.Table) -> bool:
    """Equal names and values, whatever the nullability of the fields."""
    return left.column_names == right.column_names and all(
        a.combine_chunks().equals(b.combine_chunks().cast(a.type)) for a, b in zip(left.columns, right.columns)
    )
