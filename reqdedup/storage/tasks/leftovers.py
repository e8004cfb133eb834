"""Files that attempts of a write have left: of a task that failed, ran twice, or was killed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable

from pyiceberg.table import Table

from reqdedup.storage.iceberg.files import file_key, list_location


def remove_left(table: Table, write_ids: Collection[str], kept: Collection[str] = ()) -> None:
    """Delete the files of these writes, but those `kept`, which are committed.

    The writes must have ended: nobody may be writing files of theirs. What cannot be listed stays for `sweep_orphans`.
    """
    prefixes, keys = tuple(f"{write_id}-" for write_id in write_ids), {file_key(path) for path in kept}
    found: list[str] = []
    with contextlib.suppress(Exception):
        for file in list_location(table) if prefixes else ():
            if file.path.rpartition("/")[2].startswith(prefixes) and file.key not in keys:
                found.append(file.path)
    remove_files(table, found)


def remove_files(table: Table, paths: Iterable[str]) -> None:
    """Delete each of these files; one that cannot be deleted stays for `sweep_orphans`, and keeps no other."""
    for path in paths:
        with contextlib.suppress(Exception):
            table.io.delete(path)
