"""The table of rejected rows: what of a log was not taken, why, and where it stands.

Bad input never passes silently: every ingest replaces the rows of this table as a whole, by none if none was rejected,
so that it always speaks about the log that the engagement tables hold. What is rejected, `reqdedup.logs` decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import LongType, NestedField, StringType

from reqdedup.schema import USER_ID
from reqdedup.storage.iceberg.errors import ConflictError, is_conflict
from reqdedup.storage.iceberg.layout import LAYOUT_PROPERTY
from reqdedup.storage.iceberg.manifests import scan_tasks
from reqdedup.storage.iceberg.names import REJECTS_TABLE, check_free_name

_SCHEMA = Schema(
    NestedField(
        1, "reason", StringType(), required=True, doc="why the row was rejected, one of reqdedup.logs' reasons"
    ),
    NestedField(2, "detail", StringType(), required=False, doc="what was found there"),
    NestedField(3, "file", StringType(), required=True, doc="file of the log that holds the row"),
    NestedField(4, "line", LongType(), required=False, doc="line or row number in that file, the first is 1"),
    NestedField(5, "raw", StringType(), required=False, doc="the row as it stands in the file, cut if it is long"),
    NestedField(6, USER_ID, LongType(), required=False, doc="user_id of the row's user, null if it cannot be read"),
)


def rejects_identifier(identifier: str) -> str:
    """Identifier of the rejects table that belongs to an engagement table: the same namespace.

    Raises ValueError if the engagement table has no namespace or would be the rejects table itself.
    """
    return f"{check_free_name(identifier)}.{REJECTS_TABLE}"


def is_rejects_table(table: Table) -> bool:
    """Whether a table is one of rejected rows; one of an earlier version has no user_id, another
    engine may add columns."""
    required = set(_SCHEMA.column_names) - {USER_ID}
    return LAYOUT_PROPERTY not in table.properties and required <= set(table.schema().column_names)


def check_rejects_table(catalog: Catalog, identifier: str) -> None:
    """Raise ValueError if `write_rejects` would refuse this name: call it before the engagements are written."""
    if catalog.table_exists(identifier) and not is_rejects_table(table := catalog.load_table(identifier)):
        raise ValueError(
            f"table {identifier}: a table of rejected rows required, found one with columns "
            f"{', '.join(table.schema().column_names)}; rename it, or choose another namespace"
        )


def write_rejects(catalog: Catalog, identifier: str, rejects: pa.Table | Iterable[pa.RecordBatch]) -> Table:
    """Replace the rows of the table `identifier` by these rejected rows, in one commit, and return it.

    rejects: columns reason, detail, file, raw (strings), line (integer) and, if known, user_id; others are left out.
    May be empty. The namespace must exist. A table of an earlier version gets its new columns in the same commit.
    Raises ValueError if a column is missing, a reason or file is null, or the name is that of a table of other rows;
    ConflictError if another writer was faster.
    """
    rows = _conform(rejects)
    check_rejects_table(catalog, identifier)
    try:
        if not catalog.table_exists(identifier):
            with catalog.create_table_transaction(
                identifier, _SCHEMA, properties={"comment": "rows that the last ingest into this namespace rejected"}
            ) as transaction:
                transaction.append(rows)
            return catalog.load_table(identifier)
        table = catalog.load_table(identifier)
        scan_tasks(table)  # names a manifest that is damaged
        with warnings.catch_warnings(), table.transaction() as transaction:
            warnings.filterwarnings("ignore", "Delete operation did not match any records")  # none were rejected before
            if USER_ID not in table.schema().column_names:
                with transaction.update_schema() as update:
                    added = _SCHEMA.find_field(USER_ID)
                    update.add_column(USER_ID, added.field_type, doc=added.doc)
            transaction.overwrite(rows)
    except Exception as error:
        if not is_conflict(error):
            raise
        raise ConflictError(
            f"{identifier}: another writer replaced the rejected rows in the meantime; ingest again when it is done"
        ) from error
    return table


def _conform(rejects: pa.Table | Iterable[pa.RecordBatch]) -> pa.Table:
    wanted = schema_to_pyarrow(_SCHEMA, include_field_ids=False)  # by name: a table may have given them other ids
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
