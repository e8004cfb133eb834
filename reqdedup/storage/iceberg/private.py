"""What pyiceberg 0.12 has no public way for; with `datafile` and `manifest_groups`, all that uses its private names.

tests/test_architecture.py keeps it so: a new pyiceberg release is mended in this room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import cast

import pyarrow as pa
from pyarrow.fs import FileSystem
from pyiceberg.io import (
    AWS_ACCESS_KEY_ID,
    S3_ACCESS_KEY_ID,
    S3_RETRY_STRATEGY_IMPL,
    S3_SIGNER,
    InputStream,
    OutputStream,
)
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO, _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.table import CreateTableTransaction, StagedTable, Table, TableProperties, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.typedef import EMPTY_DICT, Properties

from reqdedup.storage.iceberg.paths import local_path
from reqdedup.storage.iceberg.small_files import SmallFiles


class StoreFileIO(PyArrowFileIO):
    """pyiceberg's files by Arrow; on S3 a file below the size of a part is one request, and not the three of an upload
    in parts. Manifests and their lists, which never change, are fetched once, and those that it wrote not at all: a
    commit of pyiceberg asks for the size of each that it has written, and reads each of the snapshot twice."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._manifests = SmallFiles()

    def new_input(self, location: str) -> PyArrowFile:
        return self._with_kept(super().new_input(location))

    def new_output(self, location: str) -> PyArrowFile:
        return self._with_kept(super().new_output(location))

    def _with_kept(self, file: PyArrowFile) -> PyArrowFile:
        is_manifest = file.location.endswith(".avro") and local_path(file.location) is None
        return _KeptFile(file, self._manifests) if is_manifest else file

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


class _KeptFile(PyArrowFile):
    """A file whose bytes `kept` has once they were read or written."""

    def __init__(self, file: PyArrowFile, kept: SmallFiles) -> None:
        super().__init__(file.location, file._path, file._filesystem, file._buffer_size)
        self._kept = kept

    def open(self, seekable: bool = True) -> InputStream:
        return cast(InputStream, self._kept.open(self.location, super().open))

    def create(self, overwrite: bool = False) -> OutputStream:
        return _KeptOutput(super().create(overwrite), lambda data: self._kept.keep(self.location, data))

    def __len__(self) -> int:
        known = self._kept.size_of(self.location)
        return super().__len__() if known is None else known


class _KeptOutput:
    """A stream that gives all that was written to `keep`, once the store has it."""

    def __init__(self, stream: OutputStream, keep: Callable[[bytes], None]) -> None:
        self._stream, self._keep, self._pieces = stream, keep, list[bytes]()

    def write(self, b: bytes) -> int:
        self._pieces.append(bytes(b))
        return self._stream.write(b)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        self._keep(b"".join(self._pieces))

    def __enter__(self) -> _KeptOutput:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class OnceCopied(Transaction):
    """A transaction that makes what the table will be once for each change that it has: pyiceberg does so each of the
    thirty times that a commit asks for it, with a deep copy of all snapshots and schemas."""

    _made: tuple[TableMetadata, tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        now, updates = self._table.metadata, self._updates
        if self._made is None or self._made[0] is not now or self._made[1] is not updates:
            self._made = now, updates, super().table_metadata
        return self._made[2]


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
    with OnceCopied(view) as transaction:
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
