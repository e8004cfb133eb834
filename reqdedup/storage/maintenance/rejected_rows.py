"""Deleting users from the table of rejected rows, which has the text of rows that no engagement table took.

A row goes where its user_id is one of them. A row whose user could not be read goes where the id, or the original key
that it is the hash of, stands in its text as a word: rather one row too many of a table that is for looking at. A row
of another user goes where its detail names them ("more rows of user 7").
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from reqdedup.schema import USER_ID
from reqdedup.storage.iceberg.errors import ConflictError, is_conflict
from reqdedup.storage.iceberg.manifest_groups import replace_files
from reqdedup.storage.iceberg.manifests import data_files, scan_tasks
from reqdedup.storage.iceberg.private import files_of_rows
from reqdedup.storage.iceberg.same_requests import OPERATION
from reqdedup.storage.maintenance.expire import delete_files

ATTEMPTS = 5


@dataclass(frozen=True)
class Rewritten:
    """rows: deleted.  files, old_bytes: that held them.  rewritten, bytes: in their place."""

    rows: int = 0
    files: int = 0
    old_bytes: int = 0
    rewritten: int = 0
    bytes: int = 0
    snapshot_id: int | None = None


def count_rejected(table: Table, users: np.ndarray, words: Collection[str], snapshot_id: int | None = None) -> int:
    """How many rejected rows of a snapshot are of these users or name them."""
    rows = _rows(table, snapshot_id)
    return int(names_users(rows, users, words).sum())


def delete_rejected(table: Table, users: np.ndarray, words: Collection[str]) -> Rewritten:
    """Write the table again without the rows of these users, in one commit; nothing where there are none.

    It is small enough to hold: an ingest held it too. Raises ConflictError if ingests replace it all the time.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _delete_once(table, users, words)
        except Exception as error:
            if not is_conflict(error):
                raise
            conflict = error  # an ingest has replaced the rows
            time.sleep(0.1 * attempt)
    raise ConflictError(
        f"{'.'.join(table.name())}: the table left alone by others required while it is rewritten, found it replaced "
        f"{ATTEMPTS} times; run it again when the ingest is done"
    ) from conflict


def _delete_once(table: Table, users: np.ndarray, words: Collection[str]) -> Rewritten:
    table.refresh()
    rows = _rows(table)
    gone = names_users(rows, users, words)
    if not gone.any():
        return Rewritten()
    old = data_files(table)
    new = files_of_rows(table, rows.filter(pa.array(~gone)))
    try:
        with table.transaction() as transaction:
            replace_files(transaction, old, new, summary={OPERATION: "delete"})
    except Exception as error:
        if is_conflict(error):
            delete_files(table, [file.file_path for file in new])
        raise
    current = table.current_snapshot()
    return Rewritten(
        rows=int(gone.sum()),
        files=len(old),
        old_bytes=sum(file.file_size_in_bytes for file in old),
        rewritten=len(new),
        bytes=sum(file.file_size_in_bytes for file in new),
        snapshot_id=current.snapshot_id if current is not None else None,
    )


def _rows(table: Table, snapshot_id: int | None = None) -> pa.Table:
    scan_tasks(table, snapshot_id)  # names a manifest that is damaged
    return table.scan(snapshot_id=snapshot_id).to_arrow()


def names_users(rows: pa.Table, users: np.ndarray, words: Collection[str]) -> np.ndarray:
    """Which rejected rows are of these users or name them, [N] bool. words: their ids and keys as text."""
    found = np.zeros(rows.num_rows, bool)
    unknown = np.ones(rows.num_rows, bool)
    if USER_ID in rows.column_names:
        owner = rows.column(USER_ID)
        unknown = owner.is_null().to_numpy()
        found |= np.isin(owner.fill_null(0).to_numpy(), users) & ~unknown
    any_word = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    # A word ends where no letter, digit or underscore goes on; a key may itself begin with another character.
    as_word = rf"(?:^|[^\pL\pN_])(?:{any_word})(?:$|[^\pL\pN_])"
    for name in ("raw", "detail"):
        found |= unknown & _matches(rows.column(name), as_word)
    return found | _matches(rows.column("detail"), rf"\buser[ =](?:{any_word})(?:$|[^\pL\pN_])")


def _matches(texts: pa.ChunkedArray, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(texts.fill_null(""), pattern).to_numpy()
