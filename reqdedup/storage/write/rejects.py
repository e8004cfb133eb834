"""The table of rejected rows: what of a log was not taken, why, and where it stands.

Bad input never passes silently: every ingest replaces this table as a whole, an empty one included, so that it always
speaks about the log that the engagement tables hold. It does not decide what is rejected; `reqdedup.logs` does.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import LongType, NestedField, StringType

from reqdedup.schema import USER_ID

REJECTS_TABLE = "rejected_engagements"
"""Name of the table beside the engagement tables of a namespace."""

_SCHEMA = Schema(
    NestedField(
        1, "reason", StringType(), required=True, doc="why the row was rejected, one of reqdedup.logs' reasons"
    ),
    NestedField(2, "detail", StringType(), required=False, doc="what was found there"),
    NestedField(3, "file", StringType(), required=True, doc="file of the log that holds the row"),
    NestedField(4, "line", LongType(), required=False, doc="line or row number in that file, the first is 1"),
    NestedField(5, "raw", StringType(), required=False, doc="the row as it stands in the file, cut where it is long"),
    NestedField(
        6, "user_id", LongType(), required=False, doc="user_id of the row's user, null where it cannot be read"
    ),
)


def rejects_identifier(identifier: str) -> str:
    """Identifier of the rejects table that belongs to an engagement table: the same namespace.

    Raises ValueError for a name without a namespace, and for the rejects table's own name, where rows and rejects would
    replace each other.
    """
    namespace, _, name = identifier.rpartition(".")
    if not namespace or not name:
        raise ValueError(f"a table is named as namespace.table, found {identifier!r}")
    if name == REJECTS_TABLE:
        raise ValueError(
            f"{identifier}: another name required, since {REJECTS_TABLE} is that of the rows that an ingest rejects"
        )
    return f"{namespace}.{REJECTS_TABLE}"


def is_rejects_table(table: Table) -> bool:
    """Whether a table is one of rejected rows, of this version or an earlier one without user_id."""
    names = set(table.schema().column_names)
    return names | {USER_ID} == set(_SCHEMA.column_names)


def write_rejects(catalog: Catalog, identifier: str, rejects: pa.Table | Iterable[pa.RecordBatch]) -> Table:
    """Replace the table `identifier` by these rejected rows, in one commit, and return it.

    rejects: columns reason, detail, file, raw (strings), line (integer) and, where known, user_id; others are left out.
    May be empty. The namespace must exist. A table of another schema is dropped with its files and made anew.
    Raises ValueError where a column is missing or a reason or file is null.
    """
    rows = _conform(rejects)
    if catalog.table_exists(identifier):
        table = catalog.load_table(identifier)
        if table.schema().as_struct() == _SCHEMA.as_struct():
            table.overwrite(rows)
            return table
        catalog.purge_table(identifier)
    with catalog.create_table_transaction(
        identifier, _SCHEMA, properties={"comment": "rows that the last ingest into this namespace rejected"}
    ) as transaction:
        transaction.append(rows)
    return catalog.load_table(identifier)


def _conform(rejects: pa.Table | Iterable[pa.RecordBatch]) -> pa.Table:
    wanted = _SCHEMA.as_arrow()
    if not isinstance(rejects, pa.Table):
        batches = list(rejects)
        if not batches:
            return wanted.empty_table()
        rejects = pa.Table.from_batches(batches)
    if USER_ID not in rejects.column_names:
        rejects = rejects.append_column(USER_ID, pa.nulls(rejects.num_rows, pa.int64()))
    missing = [name for name in wanted.names if name not in rejects.column_names]
    if missing:
        raise ValueError(
            f"rejected rows: columns {wanted.names} required, {missing} not among {rejects.column_names}; "
            "pass what `read_log(...).rejects` returns"
        )
    for name in ("reason", "file"):
        if nulls := rejects.column(name).null_count:
            raise ValueError(f"rejected rows: every row needs a {name}, found {nulls} without")
    return rejects.select(wanted.names).cast(wanted)
