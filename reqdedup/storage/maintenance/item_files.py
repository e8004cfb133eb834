"""The files of a vocabulary of items, put together: each ingest or append that brings keys adds one."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.schema import ITEM_ID
from reqdedup.storage.iceberg.errors import ConflictError, IntegrityError, is_conflict, is_outcome_unknown
from reqdedup.storage.iceberg.manifest_groups import replace_files
from reqdedup.storage.iceberg.manifests import data_files
from reqdedup.storage.iceberg.private import files_of_rows, one_attempt
from reqdedup.storage.iceberg.retries import CommitRetries
from reqdedup.storage.iceberg.same_requests import OPERATION


def compact_items(table: Table) -> tuple[list[DataFile], list[DataFile], int | None]:
    """The files of a vocabulary, one for each ingest or append that brought keys, as one in the order of ids.

    All columns stay, those of others too. Keys that come meanwhile make the commit fail, and it begins anew, as theirs
    does after it. Memory is that of the whole vocabulary. Gives the old files, the new ones, and the snapshot; None if
    nothing was to do.
    """
    name, retries = ".".join(table.name()), CommitRetries.of(table.properties)
    for attempt in range(retries.count + 1):
        old = data_files(table)
        if len(old) < 2:
            return old, old, None
        rows = table.scan().to_arrow().sort_by(ITEM_ID)
        new = files_of_rows(table, rows)
        back = pa.concat_tables([pq.read_table(table.io.new_input(file.file_path).open()) for file in new])
        if not back.select(rows.column_names).cast(rows.schema).sort_by(ITEM_ID).equals(rows):
            raise IntegrityError(
                f"{name}: the same keys after the rewrite required, found others; nothing was committed"
            )
        try:
            with one_attempt(table) as transaction:
                replace_files(transaction, old, new, summary={OPERATION: "compact"}, deletes=True)
            snapshot = table.current_snapshot()
            return old, new, snapshot.snapshot_id if snapshot is not None else None
        except Exception as error:
            if is_outcome_unknown(error):
                raise
            for file in new:
                table.io.delete(file.file_path)
            if not is_conflict(error):
                raise
            retries.wait(attempt)
            table.refresh()
    raise ConflictError(f"{name}: others still commit faster after {retries}; compact it when they are done")
