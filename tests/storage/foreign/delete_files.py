"""Delete files as merge-on-read engines write them; pyiceberg 0.12 reads such tables and has no way to make them."""

from __future__ import annotations

import json
import struct
import zlib

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


def delete_positions(table: Table, positions: dict[str, list[int]], kind: FileFormat = FileFormat.PARQUET) -> list[str]:
    """Delete these rows (path of a data file -> row numbers) by one position-delete file per data file.

    kind: what the manifest says that they are; they are Parquet. Their paths.
    """
    partition_of = {task.file.file_path: task.file.partition for task in table.scan().plan_files()}
    schema = pa.schema([_field("file_path", pa.string(), _PATH), _field("pos", pa.int64(), _POSITION)])
    files = []
    for path, rows in positions.items():
        rows_table = pa.table([[path] * len(rows), rows], schema=schema)
        files.append(_delete_file(table, rows_table, DataFileContent.POSITION_DELETES, partition_of[path], None, kind))
    _commit(table, files)
    return [file.file_path for file in files]


def delete_by_vectors(table: Table, positions: dict[str, list[int]]) -> None:
    """Delete these rows by one deletion vector per data file, all in one Puffin file."""
    blobs, found = b"PFA1", []
    for path, rows in positions.items():
        vector = b"\xd1\xd3\x39\x64" + struct.pack("<QI", 1, 0) + _roaring(rows)
        blob = struct.pack(">I", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))
        found.append({"type": "deletion-vector-v1", "fields": [_POSITION], "snapshot-id": -1, "sequence-number": -1})
        found[-1] |= {"offset": len(blobs), "length": len(blob)}
        found[-1] |= {"properties": {"referenced-data-file": path, "cardinality": str(len(rows))}}
        blobs += blob
    footer = json.dumps({"blobs": found}).encode()
    output = table.io.new_output(table.location_provider().new_data_location("deletes.puffin"))
    with output.create() as stream:
        stream.write(blobs + b"PFA1" + footer + struct.pack("<II", len(footer), 0) + b"PFA1")
    task = next(iter(table.scan().plan_files()))
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=output.location,
        file_format=FileFormat.PUFFIN,
        partition=task.file.partition,
        record_count=sum(map(len, positions.values())),
        file_size_in_bytes=len(output),
    )
    file.spec_id = table.spec().spec_id
    _commit(table, [file])


def _roaring(rows: list[int]) -> bytes:
    """The portable form of a bitmap of numbers below 2**16: one container, an array."""
    head = struct.pack("<IIHHI", 12346, 1, 0, len(rows) - 1, 16)
    return head + struct.pack(f"<{len(rows)}H", *rows)


def delete_where_equal(table: Table, column: str, value: int, partition: Record) -> None:
    """Delete the rows of a partition whose int64 column has this value, by an equality-delete file."""
    field = table.schema().find_field(column)
    rows = pa.table([[value]], schema=pa.schema([_field(column, pa.int64(), field.field_id)]))
    _commit(table, [_delete_file(table, rows, DataFileContent.EQUALITY_DELETES, partition, [field.field_id])])


def _field(name: str, kind: pa.DataType, field_id: int) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"PARQUET:field_id": str(field_id)})


def _delete_file(
    table: Table,
    rows: pa.Table,
    content: DataFileContent,
    partition: Record,
    equality_ids: list[int] | None,
    kind: FileFormat = FileFormat.PARQUET,
) -> DataFile:
    path = table.location_provider().new_data_location(f"deletes-{len(rows)}-{partition}-{content.value}.parquet")
    output = table.io.new_output(path)
    with output.create() as stream:
        pq.write_table(rows, stream)
    file = DataFile.from_args(
        content=content,
        file_path=path,
        file_format=kind,
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
