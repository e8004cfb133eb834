"""The sweep: files under a table's location that nothing points at, left by killed writers and lost commits.

    list the location -> read the metadata -> orphans = listed - reachable, older than the guard, of
    a kind that tables have

Two things would make it destroy a table, and both stop it: paths that it cannot match (a reachable file that the
listing does not show), and another table in the same folder (a metadata file with another table's id).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlparse

import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.masking import mask
from reqdedup.storage.iceberg.files import DERIVED, METADATA, FoundFile, file_key, list_location, reachable_files
from reqdedup.storage.maintenance.expire import cutoff_of, delete_files

DEFAULT_GUARD = timedelta(days=3)
"""Younger files may belong to a write that has not committed yet; so a write must not take longer."""

FILES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("kind", pa.string()),
        ("bytes", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What a sweep found, and unless dry_run has deleted.

    files: the orphans, largest first (path, kind, bytes, modified).  bytes: of them.
    young: orphans that the age guard protects, with young_bytes.  unknown: files that no table has, never deleted.
    kept: files that the table needs.
    """

    files: pa.Table
    bytes: int
    young: int
    young_bytes: int
    unknown: int
    kept: int
    dry_run: bool


def sweep_orphans(
    table: Table,
    *,
    older_than: timedelta | datetime = DEFAULT_GUARD,
    dry_run: bool = True,
    dropped: Collection[str] = (),
    write_id: str | None = None,
) -> SweepReport:
    """Find files under the table's location that no snapshot, branch, tag or metadata needs; delete them on request.

    older_than: the age guard; it must be longer than any write to this table takes.  dry_run: only look.
    dropped: ids of tables that were in this folder before and are no more, so that their files are orphans too.
    write_id: only what this write left, of any age; it must have ended.
    Raises ValueError if the folder is shared with another table, or if a file of the table is not listed; then
    nothing was deleted. Raises OSError for files that would not go.
    """
    cutoff = cutoff_of(older_than)
    name = ".".join(table.name())
    table.refresh()
    before = _needed_kinds(table)
    found = list(list_location(table))
    table.refresh()
    after = _needed_kinds(table)
    needed = before.keys() | after.keys()
    _check_listed(table, {key for key in before.keys() & after.keys() if after[key] != DERIVED}, found)
    loose = [file for file in found if file.key not in needed and file.kind is not None]
    _check_own_folder(table, [file for file in loose if file.kind == METADATA], dropped)
    if write_id is None:
        orphans = [file for file in loose if file.modified is not None and file.modified < cutoff]
    else:
        loose = orphans = [file for file in loose if file.path.rpartition("/")[2].startswith(f"{write_id}-")]
    orphans = sorted(orphans, key=lambda file: (-file.num_bytes, file.path))
    young = len(loose) - len(orphans)
    report = SweepReport(
        files=pa.Table.from_pylist([_row(file) for file in orphans], FILES_SCHEMA),
        bytes=sum(file.num_bytes for file in orphans),
        young=young,
        young_bytes=sum(file.num_bytes for file in loose) - sum(file.num_bytes for file in orphans),
        unknown=sum(file.kind is None and file.num_bytes > 0 for file in found),
        kept=len(found) - len(loose),
        dry_run=dry_run,
    )
    if not dry_run:
        outside = [file.path for file in orphans if not _really_under(file.path, table.location())]
        if outside:
            raise ValueError(
                f"{name}: files below its location required, found {outside[0]}, a link to elsewhere; remove the link "
                "first"
            )
        delete_files(table, [file.path for file in orphans])
    return report


def _needed_kinds(table: Table) -> dict[str, str]:
    return {file_key(path): file.kind for path, file in reachable_files(table).items()}


def _check_listed(table: Table, needed: set[str], found: list[FoundFile]) -> None:
    """Every file that the table needs and that should be in its folder must have been listed."""
    root = file_key(table.location()) + "/"
    listed = {file.key for file in found}
    missing = sorted(key for key in needed if key.startswith(root) and key not in listed and not _is_log_entry(key))
    if missing:
        raise ValueError(
            f"{'.'.join(table.name())}: every file of the table listed under {mask(table.location())} required, not "
            f"found: {missing[0]} ({len(missing)} such files); it was lost, or is named in another way there. Nothing "
            "was deleted; restore it or roll the table back"
        )


def _is_log_entry(key: str) -> bool:
    """Old metadata files may have gone by the table's own setting; the current one was just read."""
    return ".metadata.json" in key


def _check_own_folder(table: Table, metadata: list[FoundFile], dropped: Collection[str]) -> None:
    own = {str(table.metadata.table_uuid), *map(str, dropped)}
    for file in metadata:
        uuid = _table_uuid(table, file.path)
        if uuid is not None and uuid not in own:
            raise ValueError(
                f"{'.'.join(table.name())}: a folder of its own required, found metadata of table {uuid} ({file.path}) "
                f"in {mask(table.location())}; nothing was deleted. If that table is live, move one of them; if it was "
                "dropped, name its id as dropped"
            )


def _table_uuid(table: Table, path: str) -> str | None:
    """The id of the table that a metadata file is of; None if it is no whole one, as a killed writer leaves it."""
    try:
        with table.io.new_input(path).open() as stream:
            content = stream.read()
        metadata = json.loads(gzip.decompress(content) if path.endswith(".gz") else content)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, gzip.BadGzipFile):
        return None
    return str(metadata.get("table-uuid", "without an id")) if isinstance(metadata, dict) else None


def _really_under(path: str, location: str) -> bool:
    """False for a local file that a symbolic link brings in from elsewhere."""
    parsed = urlparse(location)
    if parsed.scheme not in ("", "file"):
        return True
    root, file = (os.path.realpath(urlparse(one).path if parsed.scheme else one) for one in (location, path))
    return file.startswith(root + os.sep)


def _row(file: FoundFile) -> dict[str, object]:
    return {"path": file.path, "kind": file.kind, "bytes": file.num_bytes, "modified": file.modified}
