"""Manifests and manifest lists, opened in one place, so that a damaged or missing one is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pyiceberg.manifest import DataFile, DataFileContent, ManifestContent, ManifestEntry, ManifestFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot

from reqdedup.storage.iceberg.errors import IntegrityError

_T = TypeVar("_T")

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


def scan_tasks(table: Table, snapshot_id: int | None = None) -> list[FileScanTask]:
    """The data files of a snapshot, of the current one by default, with the delete files that apply to them.

    Raises IntegrityError that names a manifest which is damaged or gone, ValueError for deletes by value.
    """
    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return []
    try:
        return list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    except Exception:
        check_manifests(table, snapshot)  # pyiceberg says neither which file it was, nor of which table
        _refuse_deletes_by_value(table, snapshot)
        raise


def data_files(table: Table, snapshot_id: int | None = None) -> list[DataFile]:
    """The data files of a snapshot, of the current one by default."""
    return [task.file for task in scan_tasks(table, snapshot_id)]


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
