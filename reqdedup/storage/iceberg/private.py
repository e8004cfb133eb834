"""What pyiceberg 0.12 has no public way for; with `datafile`, the only place that uses its private names.

tests/test_architecture.py keeps it so: a new pyiceberg release is mended in this room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import cast

import pyarrow as pa
from pyarrow.fs import FileSystem
from pyiceberg.io import AWS_ACCESS_KEY_ID, S3_ACCESS_KEY_ID, S3_RETRY_STRATEGY_IMPL, S3_SIGNER
from pyiceberg.io.pyarrow import PyArrowFileIO, _dataframe_to_data_files
from pyiceberg.manifest import (
    DATA_FILE_TYPE,
    DEFAULT_READ_VERSION,
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestFile,
)
from pyiceberg.schema import Schema
from pyiceberg.table import CreateTableTransaction, StagedTable, Table, TableProperties, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.table.update.snapshot import _OverwriteFiles
from pyiceberg.types import NestedField

from reqdedup.storage.iceberg.same_requests import REQUESTS_OF, brings_no_requests, same_requests

_BOUNDS = [
    position
    for position, field in enumerate(DATA_FILE_TYPE[DEFAULT_READ_VERSION].fields)
    if field.name in ("lower_bounds", "upper_bounds")
]


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


def replace_files(
    transaction: Transaction,
    removed: Iterable[DataFile],
    added: Iterable[DataFile],
    *,
    summary: dict[str, str],
    branch: str = "main",
    deletes: bool = False,
) -> None:
    """Put the snapshot into the transaction that has `added` in place of `removed`.

    It keeps no values of the removed files, since their bounds may be the last that is known of a deleted user.
    deletes: nor delete files of another engine, which apply to nothing if every data file is replaced.
    """
    update = transaction.update_snapshot(snapshot_properties=summary, branch=branch)
    with update.overwrite() as snapshot:
        _forget_removed(snapshot, deletes=deletes)
        for data_file in removed:
            snapshot.delete_data_file(data_file)
        for data_file in added:
            snapshot.append_data_file(data_file)


def files_of_rows(table: Table, rows: pa.Table) -> list[DataFile]:
    """Rows as new data files of a table without a layout of ours, written as pyiceberg does; not committed yet."""
    return list(_dataframe_to_data_files(table.metadata, rows, table.io)) if len(rows) else []


def _forget_removed(snapshot: _OverwriteFiles, *, deletes: bool) -> None:
    """pyiceberg 0.12 copies the bounds into the manifest of what was removed, and carries such
    manifests along for ever."""
    removed_of, manifests_of = snapshot._deleted_entries, snapshot._existing_manifests
    noted = snapshot.snapshot_properties
    schema = _with_sources(snapshot._transaction.table_metadata)

    def without_bounds() -> list[ManifestEntry]:
        entries = removed_of()
        for entry in entries:
            for position in _BOUNDS:
                entry.data_file[position] = None
        return entries

    def with_files() -> list[ManifestFile]:
        # Here and not before: pyiceberg may try again on top of another parent.
        if brings_no_requests(noted):
            _, first = same_requests(snapshot._transaction.table_metadata, snapshot._parent_snapshot_id)
            snapshot.snapshot_properties = {**noted, REQUESTS_OF: str(first)} if first is not None else noted
        kept = [one for one in manifests_of() if one.has_added_files() or one.has_existing_files()]
        return [one for one in kept if not deletes or one.content is ManifestContent.DATA]

    snapshot._deleted_entries, snapshot._existing_manifests = without_bounds, with_files  # type: ignore[method-assign]
    snapshot.schema = lambda: schema  # type: ignore[method-assign]


def _with_sources(metadata: TableMetadata) -> Schema:
    """The current schema, with the columns that earlier specs partition by: manifests of removed
    files need their types."""
    schema = metadata.schema()
    known = {field.field_id: field for one in metadata.schemas for field in one.fields}
    sources = {field.source_id for spec in metadata.partition_specs for field in spec.fields}
    gone = [
        NestedField(source, f"{known[source].name}_{source}", known[source].field_type, required=False)
        for source in sorted(sources - schema.field_ids)
        if source in known
    ]
    return Schema(*schema.fields, *gone, schema_id=schema.schema_id) if gone else schema
