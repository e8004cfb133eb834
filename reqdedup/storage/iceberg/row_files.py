"""Data files of tables without a layout of ours, one per partition, and the one commit that makes them the table's.

Of `StagedFiles` the plain sister: rows come sorted and whole per partition, are of any schema and any partition spec,
and a commit that lost to another is never put on top of it: who reads a table to append to it must read it again.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import Table
from pyiceberg.table.update import SetPropertiesUpdate

from reqdedup.storage.iceberg.commit import MAY_LAND, WRITE_ID
from reqdedup.storage.iceberg.errors import ConflictError, is_conflict, is_outcome_unknown
from reqdedup.storage.iceberg.evolve import MAIN
from reqdedup.storage.iceberg.files import DERIVED_FILE
from reqdedup.storage.iceberg.manifest_groups import append_files, replace_files
from reqdedup.storage.iceberg.private import OnceCopied, stage

NO_RETRIES = {"commit.retry.num-retries": "0"}
"""Property of tables whose commits must not be put on top of others'."""

ROW_GROUP_ROWS = 131_072
ZSTD_LEVEL = 3


class RowFiles:
    """New data files of a table, in a `with` block: deleted on the way out unless `commit` has landed.

    encodings: column -> Parquet encoding; the others have a dictionary.
    """

    def __init__(self, table: Table, encodings: Mapping[str, str]) -> None:
        self.table, self.write_id = table, uuid.uuid4().hex
        self.files: list[DataFile] = []
        self.num_rows = self.num_bytes = 0
        self._schema = schema_to_pyarrow(table.schema(), include_field_ids=True)
        names = self._schema.names
        self._encodings = {name: encoding for name, encoding in encodings.items() if name in names}
        self._dictionaries = [name for name in names if name not in self._encodings]
        self._statistics = compute_statistics_plan(table.schema(), table.properties)
        self._ids = parquet_path_to_id_mapping(table.schema())
        self._paths: list[str] = []
        self._derived: str | None = None
        self._keep = False

    def __enter__(self) -> RowFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._keep:
            for path in self._paths:
                with contextlib.suppress(Exception):  # the sweep of orphans removes what stays
                    self.table.io.delete(path)

    def write(self, partition: Sequence[Any], rows: pa.Table) -> None:
        """Write rows of one partition as a file. partition: a value for each field of the spec, days or months since
        1970 for times."""
        spec = self.table.spec()
        key = PartitionKey(
            [PartitionFieldValue(field, value) for field, value in zip(spec.fields, partition)],
            spec,
            self.table.schema(),
        )
        name = f"{self.write_id}-{len(self._paths)}.parquet"
        path = self.table.location_provider().new_data_location(name, key if spec.fields else None)
        self._paths.append(path)
        output = self.table.io.new_output(path)
        with output.create() as stream:
            writer = pq.ParquetWriter(
                stream,
                self._schema,
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                use_dictionary=self._dictionaries,
                column_encoding=self._encodings,
                write_page_checksum=True,
                store_schema=False,
            )
            with writer:
                writer.write_table(rows.select(self._schema.names).cast(self._schema), ROW_GROUP_ROWS)
            footer = writer.writer.metadata
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=footer,
            stats_columns=self._statistics,
            parquet_column_mapping=self._ids,
        )
        data_file = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=key.partition,
            file_size_in_bytes=len(output),
            sort_order_id=None,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )
        data_file.spec_id = spec.spec_id
        self.files.append(data_file)
        self.num_rows += len(rows)
        self.num_bytes += data_file.file_size_in_bytes

    def derived_path(self, name: str) -> str:
        """Where to write a file that is derived from the rows and of use to the next writer alone: the snapshot names
        it in its summary, and it goes when the snapshot does."""
        self._derived = self.table.location_provider().new_metadata_location(f"{self.write_id}-{name}")
        self._paths.append(self._derived)
        return self._derived

    def commit(
        self,
        *,
        removed: Iterable[DataFile] = (),
        properties: Mapping[str, Any],
        of_table: Mapping[str, Any] | None = None,
        branch: str = MAIN,
    ) -> int:
        """Make the files part of the table in one snapshot, in place of `removed`; its id.

        properties: of the snapshot, as JSON; a commit to main makes them the table's in the same step.
        of_table: of the table alone, for what grows.
        Raises ConflictError if another writer was faster than what `table` shows; then nothing was changed.
        """
        said, said_of_table = (
            {name: json.dumps(value, separators=(",", ":")) for name, value in found.items()}
            for found in (properties, of_table or {})
        )
        summary, old = {**said, WRITE_ID: self.write_id}, list(removed)
        if self._derived is not None:
            summary[DERIVED_FILE] = self._derived
        try:
            with OnceCopied(self.table) as transaction:
                if branch == MAIN and said:
                    stage(transaction, (SetPropertiesUpdate(updates=said | said_of_table),))
                if old:
                    replace_files(transaction, old, self.files, summary=summary, branch=branch)
                else:
                    append_files(transaction, self.files, summary=summary, branch=branch)
        except BaseException as error:
            if is_conflict(error):
                raise ConflictError(
                    f"{'.'.join(self.table.name())}: another writer was faster; nothing was changed. Run it again"
                ) from error
            # As in `StagedFiles.commit`: files of a commit that may have landed stay.
            self._keep = not isinstance(error, Exception) or is_outcome_unknown(error)
            if self._keep:
                error.add_note(MAY_LAND)
            raise
        self._keep = True
        head = self.table.metadata.snapshot_by_name(branch)
        assert head is not None
        return head.snapshot_id
