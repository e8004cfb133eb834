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
    _read_all_delete_files,
    _to_requested_schema,
    pyarrow_to_schema,
)
from pyiceberg.manifest import DataFileContent
from pyiceberg.schema import Schema, prune_columns
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import ListType, MapType


def deleted_positions(table: Table, tasks: Sequence[FileScanTask]) -> dict[str, np.ndarray]:
    """Path -> numbers of the rows that position deletes name, rising. Raises ValueError for deletes by value."""
    by_value = {
        file.file_path
        for task in tasks
        for file in task.delete_files
        if file.content is DataFileContent.EQUALITY_DELETES
    }
    if by_value:
        raise ValueError(
            f"{'.'.join(table.name())}: position deletes at most required, found {len(by_value)} files of equality "
            "deletes; have the engine that wrote them rewrite the data files first"
        )
    paths = {task.file.file_path for task in tasks}
    return {
        path: np.unique(np.concatenate([chunk.to_numpy() for chunk in positions]))
        for path, positions in _read_all_delete_files(table.io, tasks).items()
        if path in paths
    }


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
        with contextlib.closing(table.io.new_input(task.file.file_path).open()) as stream:
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
