"""Files that attempts of a write have left: of a task that failed, ran twice, or was killed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from pyiceberg.table import Table

from reqdedup.storage.iceberg.files import file_key, list_location


def remove_left(table: Table, write_ids: Collection[str], kept: Collection[str] = ()) -> int:
    """Delete the files of these writes, but those `kept`, which are committed; how many there were.

    The writes must have ended: nobody may be writing files of theirs. What cannot be listed or deleted stays for
    `sweep_orphans`.
    """
    prefixes, keys, count = tuple(f"{write_id}-" for write_id in write_ids), {file_key(path) for path in kept}, 0
    if not prefixes:
        return 0
    with contextlib.suppress(Exception):
        for file in list_location(table):
            if file.path.rpartition("/")[2].startswith(prefixes) and file.key not in keys:
                with contextlib.suppress(FileNotFoundError):
                    table.io.delete(file.path)
                    count += 1
    return count
