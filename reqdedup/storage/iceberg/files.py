"""The files of a table: which of them its metadata can reach, and which really lie under its location.

Paths are compared by `file_key`, since one file may be named file:///a/b, /a/b or s3a://bucket/key and s3://bucket/key.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlparse

import pyarrow.fs as pafs
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestContent
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.statistics import PartitionStatisticsFile, StatisticsFile

from reqdedup.storage.iceberg.manifests import entries_of, manifests_of

DATA, DELETES, MANIFEST, MANIFEST_LIST, METADATA, STATISTICS = (
    "data",
    "deletes",
    "manifest",
    "manifest list",
    "metadata",
    "statistics",
)
DERIVED, DERIVED_FILE = "derived", "reqdedup.derived-file"
"""A file that can be made again from the snapshot, in whose summary it is named."""
EXCHANGE, EXCHANGE_FOLDER = "exchange", "_exchange"
"""Files between the tasks of a write, and their folder below the table's location."""

_SUFFIX_KINDS = {
    ".metadata.json": METADATA,
    ".metadata.json.gz": METADATA,
    ".avro": MANIFEST,
    ".parquet": DATA,
    ".orc": DATA,
    ".puffin": STATISTICS,
    ".stats": STATISTICS,
}
_SAME_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "abfss", "wasb": "abfss", "wasbs": "abfss"}


@dataclass(frozen=True)
class FoundFile:
    """A file under a table's location. path: as the table's FileIO takes it.  kind: by its name; None for others."""

    path: str
    key: str
    kind: str | None
    num_bytes: int
    modified: datetime | None


@dataclass(frozen=True)
class NeededFile:
    """A file that metadata points at. num_bytes: as the metadata has it; 0 where it does not say."""

    kind: str
    num_bytes: int = 0


def reachable_files(table: Table, snapshots: Iterable[Snapshot] | None = None) -> dict[str, NeededFile]:
    """By path every file that these snapshots, all of the table by default, need; each manifest is read once.

    Of all snapshots also the metadata files in the metadata's log, and statistics.
    """
    files: dict[str, NeededFile] = {}
    if snapshots is None:
        files |= dict.fromkeys(metadata_files(table), NeededFile(METADATA))
        files |= {one.statistics_path: NeededFile(STATISTICS) for one in _statistics(table.metadata)}
        snapshots = table.metadata.snapshots
    manifests: set[str] = set()
    for snapshot in snapshots:
        files[snapshot.manifest_list] = NeededFile(MANIFEST_LIST)
        if (derived := derived_file(snapshot)) is not None:
            files[derived] = NeededFile(DERIVED)
        for manifest in manifests_of(table, snapshot):
            if manifest.manifest_path in manifests:
                continue
            manifests.add(manifest.manifest_path)
            files[manifest.manifest_path] = NeededFile(MANIFEST, manifest.manifest_length)
            kind = DATA if manifest.content is ManifestContent.DATA else DELETES
            for entry in entries_of(table, manifest):
                files[entry.data_file.file_path] = NeededFile(kind, entry.data_file.file_size_in_bytes)
    return files


def derived_file(snapshot: Snapshot) -> str | None:
    """Path of the file that is derived from this snapshot; whether it is there only a look tells."""
    return snapshot.summary.get(DERIVED_FILE) if snapshot.summary is not None else None


def metadata_files(table: Table) -> list[str]:
    """The current metadata file, and those in its log."""
    return [table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)]


def file_key(path: str) -> str:
    """The same text for every name of one file."""
    parsed = urlparse(path)
    if parsed.scheme in ("", "file"):
        return "file:" + posixpath.normpath(os.path.abspath(parsed.path if parsed.scheme else path))
    scheme = _SAME_SCHEMES.get(parsed.scheme, parsed.scheme)
    return f"{scheme}:{parsed.netloc}{posixpath.normpath('/' + parsed.path)}"


def is_under(path: str, location: str) -> bool:
    """Whether the file lies in the folder `location`, at any depth."""
    return file_key(path).startswith(file_key(location) + "/")


def list_location(table: Table) -> Iterator[FoundFile]:
    """Every file under the table's location, as its storage lists it.

    Raises ValueError for a location that is a whole bucket or file system, or storage that cannot be listed.
    """
    location = table.location().rstrip("/")
    parsed = urlparse(location)
    if not parsed.path.strip("/"):
        raise ValueError(
            f"{'.'.join(table.name())}: a folder of its own required as location, found {location!r}; files of others "
            "would be listed as the table's"
        )
    filesystem, root = _filesystem(table.io, location)
    prefix = location[: len(location) - len(parsed.path)] if parsed.scheme else ""
    for entry in filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
        if entry.type != pafs.FileType.File:
            continue
        inside = entry.path[len(root) :].lstrip("/")
        path = f"{prefix}{parsed.path}/{inside}"
        yield FoundFile(path, file_key(path), _kind(inside), entry.size or 0, entry.mtime)


def _filesystem(io: FileIO, location: str) -> tuple[pafs.FileSystem, str]:
    if isinstance(io, PyArrowFileIO):
        scheme, netloc, path = io.parse_location(location, io.properties)
        return io.fs_by_scheme(scheme, netloc), path
    parsed = urlparse(location)
    get_fs = getattr(io, "get_fs", None)
    if get_fs is None:
        raise ValueError(
            f"{location}: storage that can be listed required, found {type(io).__name__}; set py-io-impl to "
            "pyiceberg.io.pyarrow.PyArrowFileIO or pyiceberg.io.fsspec.FsspecFileIO"
        )
    return pafs.PyFileSystem(pafs.FSSpecHandler(get_fs(parsed.scheme))), f"{parsed.netloc}{parsed.path}"


def _kind(name: str) -> str | None:
    """What a file is by its name. Hidden files and folders are others': they begin with . or _, but for our own."""
    if name.startswith(f"{EXCHANGE_FOLDER}/"):
        return EXCHANGE
    if any(part.startswith((".", "_")) for part in name.split("/")):
        return None
    if posixpath.basename(name).startswith("snap-") and name.endswith(".avro"):
        return MANIFEST_LIST
    return next((kind for suffix, kind in _SUFFIX_KINDS.items() if name.endswith(suffix)), None)


def _statistics(metadata: TableMetadata) -> list[StatisticsFile | PartitionStatisticsFile]:
    return [*metadata.statistics, *metadata.partition_statistics]
