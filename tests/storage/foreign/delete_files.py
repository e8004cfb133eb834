"""Delete files as merge-on-read engines write them; pyiceberg 0.12 reads such tables and has no way to make them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriterV2,
)
from pyiceberg.table import Table
from pyiceberg.typedef import Record

_PATH, _POSITION = 2147483546, 2147483545
"""Field ids of a position-delete file, from the Iceberg specification, "Reserved Field IDs"."""


class _DeleteManifestWriter(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def delete_positions(table: Table, positions: dict[str, list[int]]) -> None:
    """Delete these rows (path of a data file -> row numbers) by one position-delete file per data file."""
    partition_of = {task.file.file_path: task.file.partition for task in table.scan().plan_files()}
    schema = pa.schema([_field("file_path", pa.string(), _PATH), _field("pos", pa.int64(), _POSITION)])
    files = []
    for path, rows in positions.items():
        rows_table = pa.table([[path] * len(rows), rows], schema=schema)
        files.append(_delete_file(table, rows_table, DataFileContent.POSITION_DELETES, partition_of[path], None))
    _commit(table, files)


def delete_where_equal(table: Table, column: str, value: int, partition: Record) -> None:
    """Delete the rows of a partition whose int64 column has this value, by an equality-delete file."""
    field = table.schema().find_field(column)
    rows = pa.table([[value]], schema=pa.schema([_field(column, pa.int64(), field.field_id)]))
    _commit(table, [_delete_file(table, rows, DataFileContent.EQUALITY_DELETES, partition, [field.field_id])])


def _field(name: str, kind: pa.DataType, field_id: int) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"PARQUET:field_id": str(field_id)})


def _delete_file(
    table: Table, rows: pa.Table, content: DataFileContent, partition: Record, equality_ids: list[int] | None
) -> DataFile:
    path = table.location_provider().new_data_location(f"deletes-{len(rows)}-{partition}-{content.value}.parquet")
    output = table.io.new_output(path)
    with output.create() as stream:
        pq.write_table(rows, stream)
    file = DataFile.from_args(
        content=content,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=partition,
        record_count=len(rows),
        file_size_in_bytes=len(output),
        equality_ids=equality_ids,
    )
    file.spec_id = table.spec().spec_id
    return file


def _commit(table: Table, files: list[DataFile]) -> None:
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as producer:
        existing = producer._existing_manifests()

        def manifests() -> list[ManifestFile]:
            output = table.io.new_output(f"{table.location()}/metadata/deletes-{producer.snapshot_id}.avro")
            with _DeleteManifestWriter(table.spec(), table.schema(), output, producer.snapshot_id, "null") as writer:
                for file in files:
                    writer.add(
                        ManifestEntry.from_args(
                            status=ManifestEntryStatus.ADDED, snapshot_id=producer.snapshot_id, data_file=file
                        )
                    )
            return [*existing, writer.to_manifest_file()]

        producer._manifests = manifests  # type: ignore[method-assign]
    table.refresh()
