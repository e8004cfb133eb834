"""What pyiceberg 0.12 has no public way for; with `datafile` and `manifest_groups`, all that uses its private names.

tests/test_architecture.py keeps it so: a new pyiceberg release is mended in this room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import cast

import pyarrow as pa
from pyarrow.fs import FileSystem
from pyiceberg.io import AWS_ACCESS_KEY_ID, S3_ACCESS_KEY_ID, S3_RETRY_STRATEGY_IMPL, S3_SIGNER
from pyiceberg.io.pyarrow import PyArrowFileIO, _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.table import CreateTableTransaction, StagedTable, Table, TableProperties, Transaction
from pyiceberg.table.update import TableRequirement, TableUpdate


class StoreFileIO(PyArrowFileIO):
    """pyiceberg's files by Arrow; on S3 a file below the size of a part is one request, and not the three of an upload
    in parts."""

    def _initialize_s3_fs(self, netloc: str | None) -> FileSystem:
        signed = self.properties.get("s3.remote-signing-enabled", "").lower() == "true" or S3_SIGNER in self.properties
        if signed and not (S3_ACCESS_KEY_ID in self.properties or AWS_ACCESS_KEY_ID in self.properties):
            raise ValueError(
                f"s3://{netloc}: keys of the store required, found a catalog that signs each request itself (remote "
                "signing), which is not supported; let it vend credentials, or set s3.access-key-id and "
                "s3.secret-access-key"
            )
        store = super()._initialize_s3_fs(netloc)
        if S3_RETRY_STRATEGY_IMPL in self.properties:  # an object of Python, which would be lost
            return store
        made, (options,) = store.__reduce__()
        return made({**options, "allow_delayed_open": True})


@contextmanager
def one_attempt(table: Table) -> Iterator[Transaction]:
    """A transaction that is committed at the end of the block, once: `CommitRetries` repeats it, and not pyiceberg.

    Its own waits are nearly the same in every writer, who so meet again each time. Of a staged table, it makes it.
    """
    if isinstance(table, StagedTable):
        with CreateTableTransaction(table) as transaction:
            yield transaction
        return
    view = copy(table)
    once = {**table.metadata.properties, TableProperties.COMMIT_NUM_RETRIES: "0"}
    view.metadata = table.metadata.model_copy(update={"properties": once})
    with view.transaction() as transaction:
        yield transaction
    if view.metadata_location != table.metadata_location:
        table.metadata, table.metadata_location = view.metadata, view.metadata_location


def stage(
    transaction: Transaction, updates: tuple[TableUpdate, ...], requirements: tuple[TableRequirement, ...] = ()
) -> None:
    """Add updates and requirements to a transaction, which commits them with what else it has."""
    transaction._stage(updates, requirements)


def staged_table(transaction: CreateTableTransaction) -> StagedTable:
    """The table that the transaction makes when it commits."""
    return cast(StagedTable, transaction._table)


def files_of_rows(table: Table, rows: pa.Table) -> list[DataFile]:
    """Rows as new data files of a table without a layout of ours, written as pyiceberg does; not committed yet."""
    return list(_dataframe_to_data_files(table.metadata, rows, table.io)) if len(rows) else []
