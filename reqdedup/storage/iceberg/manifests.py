"""Manifests and manifest lists, opened in one place, so that a damaged or missing one is named."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.manifest import DataFile, DataFileContent, ManifestContent, ManifestEntry, ManifestFile
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import NestedField, PrimitiveType

from reqdedup.storage.iceberg.errors import IntegrityError

_T = TypeVar("_T")

ALL_ROWS = AlwaysTrue()

COPY_THERE = "have an engine that reads them copy the table (CREATE TABLE ... AS SELECT ...), and name the copy"


def manifests_of(table: Table, snapshot: Snapshot | None) -> list[ManifestFile]:
    """The manifests of a snapshot. Raises IntegrityError that names the manifest list if it is damaged or gone."""
    if snapshot is None:
        return []
    return _read(table, snapshot.manifest_list, "manifest list", lambda: snapshot.manifests(table.io))


def entries_of(table: Table, manifest: ManifestFile) -> list[ManifestEntry]:
    """The entries of a manifest that are alive. Raises IntegrityError that names the manifest if it
    is damaged or gone."""
    path = manifest.manifest_path
    return _read(table, path, "manifest", lambda: manifest.fetch_manifest_entry(table.io, discard_deleted=True))


def scan_tasks(
    table: Table, snapshot_id: int | None = None, *, row_filter: str | BooleanExpression = ALL_ROWS
) -> list[FileScanTask]:
    """The data files of a snapshot, of the current one by default, with the delete files that apply to them.

    row_filter: files that cannot hold such rows are left out. Raises IntegrityError that names a manifest which is
    damaged or gone, ValueError for deletes by value.
    """
    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return []
    try:
        return list(table.scan(row_filter, snapshot_id=snapshot.snapshot_id).plan_files())
    except Exception:
        check_manifests(table, snapshot)  # pyiceberg says neither which file it was, nor of which table
        _refuse_deletes_by_value(table, snapshot)
        raise


def data_files(table: Table, snapshot_id: int | None = None) -> list[DataFile]:
    """The data files of a snapshot, of the current one by default."""
    return [task.file for task in scan_tasks(table, snapshot_id)]


class Lookup:
    """Which manifests may list some of these data files, as far as the bounds of their partitions say."""

    def __init__(self, metadata: TableMetadata, files: Iterable[DataFile]) -> None:
        self._specs, self._schema = metadata.specs(), with_sources(metadata)
        places: dict[int, set[Any]] = defaultdict(set)
        for file in files:
            places[file.spec_id].add(file.partition[0] if len(file.partition) else None)
        whole = {spec_id: all(isinstance(value, int) for value in values) for spec_id, values in places.items()}
        self._places = {spec_id: sorted(found) if whole[spec_id] else [] for spec_id, found in places.items()}

    def may_list(self, manifest: ManifestFile) -> bool:
        if manifest.partition_spec_id not in self._places:
            return False
        places, bounds = self._places[manifest.partition_spec_id], manifest.partitions
        if not places or not bounds or bounds[0].lower_bound is None or bounds[0].upper_bound is None:
            return True  # not told, or by another value than a bucket or a day
        field = self._specs[manifest.partition_spec_id].partition_type(self._schema).fields[0]
        kind = cast(PrimitiveType, field.field_type)
        low, high = (from_bytes(kind, one) for one in (bounds[0].lower_bound, bounds[0].upper_bound))
        at = bisect_left(places, low)
        return at < len(places) and places[at] <= high


def listed(table: Table, snapshot: Snapshot | None, files: Sequence[DataFile]) -> set[str]:
    """Paths of those of these data files that a snapshot has; manifests that cannot list them stay unread."""
    wanted, lookup = {file.file_path for file in files}, Lookup(table.metadata, files)
    found: set[str] = set()
    for manifest in manifests_of(table, snapshot):
        if manifest.content is ManifestContent.DATA and lookup.may_list(manifest):
            found |= {entry.data_file.file_path for entry in entries_of(table, manifest)} & wanted
    return found


def check_manifests(table: Table, snapshot: Snapshot | None) -> None:
    """Read the snapshot's manifest list and manifests. Raises IntegrityError that names the first
    which cannot be read."""
    for manifest in manifests_of(table, snapshot):
        entries_of(table, manifest)


def _refuse_deletes_by_value(table: Table, snapshot: Snapshot) -> None:
    deletes = [one for one in manifests_of(table, snapshot) if one.content is ManifestContent.DELETES]
    entries = [entry for manifest in deletes for entry in entries_of(table, manifest)]
    num_files = sum(entry.data_file.content is DataFileContent.EQUALITY_DELETES for entry in entries)
    if num_files:
        raise ValueError(
            f"{'.'.join(table.name())}: position deletes or deletion vectors at most required, found "
            f"equality deletes, as Flink writes them, in {num_files:,} of its files; {COPY_THERE}"
        )


def _read(table: Table, path: str, kind: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except FileNotFoundError as error:
        raise _damaged(table, path, kind, "is not there") from error
    except OSError as error:  # the storage is away or refuses: nothing is known about the file
        raise OSError(error.errno, f"{'.'.join(table.name())}: {kind} {path} could not be read ({error})") from error
    except Exception as error:
        # A damaged Avro file shows as anything, from ValueError and EOFError to KeyError and zlib.error.
        raise _damaged(table, path, kind, f"is damaged ({type(error).__name__}: {error})") from error


def _damaged(table: Table, path: str, kind: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{'.'.join(table.name())}: {kind} {path} {what}; nothing was changed. Bring the file back from a backup, or "
        "go back to a snapshot that does without it (storage.rollback_to, or register an older metadata file with the "
        "catalog)"
    )


def with_sources(metadata: TableMetadata) -> Schema:
    """The current schema, with the columns that earlier specs partition by: manifests of their files need the types."""
    schema = metadata.schema()
    known = {field.field_id: field for one in metadata.schemas for field in one.fields}
    sources = {field.source_id for spec in metadata.partition_specs for field in spec.fields}
    gone = [
        NestedField(source, f"{known[source].name}_{source}", known[source].field_type, required=False)
        for source in sorted(sources - schema.field_ids)
        if source in known
    ]
    return Schema(*schema.fields, *gone, schema_id=schema.schema_id) if gone else schema


def stored_bytes(table: Table) -> int:
    """Of all data files of the current snapshot, as its summary says; 0 if it does not."""
    snapshot = table.current_snapshot()
    return int((snapshot.summary.get("total-files-size") or 0) if snapshot and snapshot.summary else 0)
