"""Rows of any Iceberg table as pyiceberg itself reads them: its projection by field id, its name mapping, its deletes.

pyiceberg's public scan holds whole files in memory. Here its projection is applied to batches of bounded size, one file
after the other. Private names of pyiceberg 0.12 are used for want of public ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    _get_column_projection_values,
    _read_deletes,
    _to_requested_schema,
    pyarrow_to_schema,
)
from pyiceberg.manifest import DataFile, FileFormat
from pyiceberg.schema import Schema, prune_columns
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import ListType, MapType

from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.manifests import COPY_THERE
from reqdedup.storage.iceberg.small_files import fetched

READ_DELETES = {FileFormat.PARQUET, FileFormat.ORC, FileFormat.PUFFIN}


def deleted_positions(table: Table, tasks: Sequence[FileScanTask]) -> dict[str, np.ndarray]:
    """Path -> numbers of the rows that position deletes and deletion vectors name, rising.

    Raises ValueError for delete files in a format that is not read, IntegrityError for one that is damaged or gone.
    """
    deletes = {file.file_path: file for task in tasks for file in task.delete_files}
    other = [file for file in deletes.values() if file.file_format not in READ_DELETES]
    if other:
        formats = ", ".join(sorted({file.file_format.value for file in other}))
        raise ValueError(
            f"{'.'.join(table.name())}: delete files in Parquet, ORC or Puffin required, found {len(other):,} in "
            f"{formats}; {COPY_THERE}"
        )
    found: dict[str, list[np.ndarray]] = {task.file.file_path: [] for task in tasks}
    for file in deletes.values():
        for path, positions in _positions(table, file).items():
            if path in found:
                found[path].append(positions)
    return {path: np.unique(np.concatenate(parts)) for path, parts in found.items() if parts}


def _positions(table: Table, file: DataFile) -> dict[str, np.ndarray]:
    try:
        return {path: rows.to_numpy() for path, rows in _read_deletes(table.io, file).items()}
    except FileNotFoundError as error:
        raise _damaged(table, file, "is not there") from error
    except OSError as error:  # the storage is away or refuses: nothing is known about the file
        raise OSError(error.errno, f"{'.'.join(table.name())}: delete file {file.file_path} ({error})") from error
    except Exception as error:
        raise _damaged(table, file, f"is damaged ({type(error).__name__}: {error})") from error


def _damaged(table: Table, file: DataFile, what: str) -> IntegrityError:
    return IntegrityError(
        f"{'.'.join(table.name())}: delete file {file.file_path} {what}, so nobody knows which rows are deleted; bring "
        "it back from a backup, or go back to a snapshot that does without it (storage.rollback_to)"
    )


def projected_batches(
    table: Table,
    tasks: Sequence[FileScanTask],
    schema: Schema,
    batch_rows: Callable[[pq.RowGroupMetaData, list[str]], int],
) -> Iterator[pa.RecordBatch]:
    """All rows that are not deleted, as `schema` has them.

    schema: the projection of the scan that planned `tasks`.  batch_rows: how many rows of a row group, of these of its
    columns, to hold at once.  Raises what pyiceberg raises for files that it cannot read.
    """
    deleted = deleted_positions(table, tasks)
    wanted = {i for i in schema.field_ids if not isinstance(schema.find_type(i), (MapType, ListType))}
    downcast = table.format_version <= 2
    for task in tasks:
        with contextlib.closing(fetched(table.io.new_input(task.file.file_path).open())) as stream:
            parquet = pq.ParquetFile(stream)
            file_schema = pyarrow_to_schema(
                parquet.schema_arrow,
                table.name_mapping(),
                downcast_ns_timestamp_to_us=downcast,
                format_version=table.format_version,
            )
            constants = _get_column_projection_values(
                task.file, schema, table.schema(), table.specs().get(task.file.spec_id), file_schema.field_ids
            )
            found = prune_columns(file_schema, wanted, select_full_types=False)
            gone, first = deleted.get(task.file.file_path, np.zeros(0, np.int64)), 0
            names = [column.name for column in found.columns]
            for group in range(parquet.num_row_groups):
                num_rows = batch_rows(parquet.metadata.row_group(group), names)
                for batch in parquet.iter_batches(num_rows, row_groups=[group], columns=names, use_threads=False):
                    kept = np.setdiff1d(np.arange(first, first + batch.num_rows), gone, assume_unique=True)
                    rows = batch if len(kept) == batch.num_rows else batch.take(pa.array(kept - first))
                    first += batch.num_rows
                    yield _to_requested_schema(
                        schema,
                        found,
                        rows,
                        downcast_ns_timestamp_to_us=downcast,
                        projected_missing_fields=constants,
                        allow_timestamp_tz_mismatch=True,
                    )
