"""Deleting rows from tables without a layout of ours: the files that hold some are written again without them.

What pyiceberg's own `delete` does, but in one snapshot, and without the bounds of the files that go: those may be the
last that is known of a deleted user.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyiceberg.expressions import BooleanExpression
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.storage.iceberg.errors import ConflictError, is_conflict
from reqdedup.storage.iceberg.manifest_groups import replace_files
from reqdedup.storage.iceberg.manifests import ALL_ROWS, scan_tasks
from reqdedup.storage.iceberg.private import files_of_rows
from reqdedup.storage.iceberg.same_requests import OPERATION
from reqdedup.storage.maintenance.expire import delete_files

ATTEMPTS = 5


@dataclass(frozen=True)
class Rewritten:
    """rows: deleted.  files, old_bytes: that held them.  rewritten, bytes: in their place."""

    rows: int = 0
    files: int = 0
    old_bytes: int = 0
    rewritten: int = 0
    bytes: int = 0
    snapshot_id: int | None = None


def delete_rows(
    table: Table, is_gone: Callable[[pa.Table], np.ndarray], *, row_filter: str | BooleanExpression = ALL_ROWS
) -> Rewritten:
    """Delete rows in one commit; nothing if there are none. Memory is that of one file's rows, twice where some go.

    is_gone: of rows of the table's schema, which go, [N] bool.  row_filter: true for these at least, so that files
    which cannot hold any are not read. Raises ConflictError if others change the table all the time.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _delete_once(table, is_gone, row_filter)
        except Exception as error:
            if not is_conflict(error):
                raise
            conflict = error
            time.sleep(0.1 * attempt)
    raise ConflictError(
        f"{'.'.join(table.name())}: the table left alone by others required while it is rewritten, found it changed "
        f"{ATTEMPTS} times; run it again"
    ) from conflict


def _delete_once(
    table: Table, is_gone: Callable[[pa.Table], np.ndarray], row_filter: str | BooleanExpression
) -> Rewritten:
    table.refresh()
    reader = ArrowScan(table.metadata, table.io, table.schema(), ALL_ROWS)
    old: list[DataFile] = []
    new: list[DataFile] = []
    num_rows = 0
    for task in scan_tasks(table, row_filter=row_filter):
        rows = reader.to_table([task])
        gone = is_gone(rows)
        if gone.any():
            num_rows += int(gone.sum())
            old.append(task.file)
            new += files_of_rows(table, rows.filter(pa.array(~gone)))
    if not old:
        return Rewritten()
    try:
        with table.transaction() as transaction:
            replace_files(transaction, old, new, summary={OPERATION: "delete"})
    except Exception as error:
        if is_conflict(error):
            delete_files(table, [file.file_path for file in new])
        raise
    current = table.current_snapshot()
    return Rewritten(
        rows=num_rows,
        files=len(old),
        old_bytes=sum(file.file_size_in_bytes for file in old),
        rewritten=len(new),
        bytes=sum(file.file_size_in_bytes for file in new),
        snapshot_id=current.snapshot_id if current is not None else None,
    )
