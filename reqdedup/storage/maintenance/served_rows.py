"""Deleting users from the tables that serving keeps, and from those that user sequences are made of.

    impressions, user_states    rows with their user_id
    raw_events, user_events, rejected_events: the same
    impression_clicks           rows with a request_id of theirs, which the impressions tell: so these go first; and
                                rows that they sent themselves

Such a table has no layout of ours: see `row_deletion`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import And, BooleanExpression, In, NotNull, Or, Reference
from pyiceberg.table import Table

from reqdedup.schema import REQUEST_ID, USER_ID
from reqdedup.storage.iceberg.evolve import MAIN
from reqdedup.storage.maintenance.row_deletion import Rewritten, delete_rows

IMPRESSIONS, CLICKS, USER_STATES = "impressions", "impression_clicks", "user_states"
EVENT_TABLES = ("raw_events", "user_events", "rejected_events")
_COLUMN = {IMPRESSIONS: USER_ID, CLICKS: REQUEST_ID, USER_STATES: USER_ID, **dict.fromkeys(EVENT_TABLES, USER_ID)}
"""Of each table, by its name: which ids say whose a row is."""


def is_served_table(table: Table) -> bool:
    """Whether the table is one of these, by its name and its column."""
    column = _COLUMN.get(table.name()[-1])
    return column is not None and column in table.schema().column_names


def requests_shown(tables: Iterable[Table], users: np.ndarray) -> np.ndarray:
    """Ids of the requests of these users that the tables `impressions` hold, rising, each once."""
    found = [np.empty(0, np.int64)]
    for table in tables:
        if is_served_table(table) and table.name()[-1] == IMPRESSIONS:
            scan = table.refresh().scan(row_filter=_is_in(USER_ID, users), selected_fields=(REQUEST_ID,))
            found.append(scan.to_arrow().column(REQUEST_ID).to_numpy())
    return np.unique(np.concatenate(found))


def comes_last(table: Table) -> bool:
    """Whether the table's turn is after the others': impressions tell whose the clicks are."""
    return table.name()[-1] == IMPRESSIONS


def count_served(table: Table, users: np.ndarray, requests: np.ndarray, snapshot_id: int | None = None) -> Rewritten:
    """Rows of these users in a snapshot, and the files that may hold them with their bytes; changes nothing."""
    theirs = _theirs(table, users, requests)
    if theirs is None or (snapshot_id is None and table.current_snapshot() is None):
        return Rewritten()
    tasks = list(table.scan(row_filter=theirs, snapshot_id=snapshot_id).plan_files())
    rows = table.scan(row_filter=theirs, snapshot_id=snapshot_id, selected_fields=(_COLUMN[table.name()[-1]],)).count()
    return Rewritten(
        rows=rows,
        files=len(tasks) if rows else 0,
        old_bytes=sum(task.file.file_size_in_bytes for task in tasks) if rows else 0,
    )


def refs_with_served(table: Table, users: np.ndarray, requests: np.ndarray) -> tuple[str, ...]:
    """Branches and tags that hold rows of these users, but for the table's own branch."""
    current = table.current_snapshot()
    refs = {name: ref.snapshot_id for name, ref in table.metadata.refs.items() if name != MAIN}
    old = {name: at for name, at in refs.items() if current is None or at != current.snapshot_id}
    return tuple(sorted(name for name, at in old.items() if count_served(table, users, requests, at).rows))


def delete_served(table: Table, users: np.ndarray, requests: np.ndarray) -> Rewritten:
    """Delete the rows of these users; see `delete_rows`."""
    theirs = _theirs(table.refresh(), users, requests)
    if theirs is None:
        return Rewritten()
    column, ids = _COLUMN[table.name()[-1]], {USER_ID: users, REQUEST_ID: requests}

    def is_theirs(rows: pa.Table) -> np.ndarray:
        names = {column, USER_ID} & {*rows.column_names}
        found = [pc.is_in(rows.column(name).cast(pa.int64()), pa.array(ids[name])).to_numpy() for name in names]
        return np.logical_or.reduce(found)

    return delete_rows(table, is_theirs, row_filter=theirs)


def _theirs(table: Table, users: np.ndarray, requests: np.ndarray) -> BooleanExpression | None:
    column = _COLUMN[table.name()[-1]]
    ids = users if column == USER_ID else requests
    theirs = _is_in(column, ids) if len(ids) else None
    if column == USER_ID or USER_ID not in table.schema().column_names or not len(users):
        return theirs
    # Clicks of earlier versions have no user: pyiceberg's delete keeps such a row, whatever else is true of it.
    sent = And(NotNull(term=Reference(USER_ID)), _is_in(USER_ID, users))
    return sent if theirs is None else Or(theirs, sent)


def _is_in(column: str, ids: np.ndarray) -> BooleanExpression:
    return In(term=Reference(column), values=set(ids.tolist()))
