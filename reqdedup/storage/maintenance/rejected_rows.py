"""Deleting users from the table of rejected rows, which has the text of rows that no engagement table took.

A row goes where its user_id is one of them. A row whose user could not be read goes where the id, or the original key
that it is the hash of, stands in its text as a word: rather one row too many of a table that is for looking at. A row
of another user goes where its detail names them ("more rows of user 7").
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from reqdedup.schema import USER_ID
from reqdedup.storage.iceberg.manifests import scan_tasks
from reqdedup.storage.maintenance.row_deletion import Rewritten, delete_rows


def count_rejected(table: Table, users: np.ndarray, words: Collection[str], snapshot_id: int | None = None) -> int:
    """How many rejected rows of a snapshot are of these users or name them."""
    scan_tasks(table, snapshot_id)  # names a manifest that is damaged
    rows = table.scan(snapshot_id=snapshot_id).to_arrow()
    return int(names_users(rows, users, words).sum())


def delete_rejected(table: Table, users: np.ndarray, words: Collection[str]) -> Rewritten:
    """Delete the rejected rows of these users, or that name them; see `delete_rows`."""
    return delete_rows(table, lambda rows: names_users(rows, users, words))


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
