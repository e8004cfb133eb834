"""The table of rejected rows: what of a log was not taken, why, and where it stands.

Bad input never passes silently: every ingest replaces the rows that an earlier one into the same engagement table left
here, by none if none was rejected, so that they always speak about the log that the table holds. Rows of the logs of
other tables of the namespace stay. What is rejected, `reqdedup.logs` decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
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
from reqdedup.storage.iceberg.private import one_attempt
from reqdedup.storage.iceberg.retries import CommitRetries

TABLE_NAME = "table_name"
_SCHEMA = Schema(
    NestedField(
        1, "reason", StringType(), required=True, doc="why the row was rejected, one of reqdedup.logs' reasons"
    ),
    NestedField(2, "detail", StringType(), required=False, doc="what was found there"),
    NestedField(3, "file", StringType(), required=True, doc="file of the log that holds the row"),
    NestedField(4, "line", LongType(), required=False, doc="line or row number in that file, the first is 1"),
    NestedField(5, "raw", StringType(), required=False, doc="the row as it stands in the file, cut if it is long"),
    NestedField(6, USER_ID, LongType(), required=False, doc="user_id of the row's user, null if it cannot be read"),
    NestedField(7, TABLE_NAME, StringType(), required=False, doc="engagement table that the log was read into"),
)
_ADDED = (USER_ID, TABLE_NAME)
"""Columns that a table of an earlier version lacks."""


def rejects_identifier(identifier: str) -> str:
    """Identifier of the rejects table that belongs to an engagement table: the same namespace.

    Raises ValueError if the engagement table has no namespace or would be the rejects table itself.
    """
    return f"{check_free_name(identifier)}.{REJECTS_TABLE}"


def is_rejects_table(table: Table) -> bool:
    """Whether a table is one of rejected rows; one of an earlier version has fewer columns, another engine may add
    some."""
    required = set(_SCHEMA.column_names) - set(_ADDED)
    return LAYOUT_PROPERTY not in table.properties and required <= set(table.schema().column_names)


def check_rejects_table(catalog: Catalog, identifier: str) -> None:
    """Raise ValueError if `write_rejects` would refuse this name: call it before the engagements are written."""
    if catalog.table_exists(identifier) and not is_rejects_table(table := catalog.load_table(identifier)):
        raise ValueError(
            f"table {identifier}: a table of rejected rows required, found one with columns "
            f"{', '.join(table.schema().column_names)}; rename it, or choose another namespace"
        )


def write_rejects(
    catalog: Catalog, identifier: str, rejects: pa.Table | Iterable[pa.RecordBatch], *, of: str | None = None
) -> Table:
    """Replace the rows of the table `identifier` by these rejected rows, in one commit, and return it.

    rejects: columns reason, detail, file, raw (strings), line (integer) and, if known, user_id; others are left out.
    May be empty. The namespace must exist. A table of an earlier version gets its new columns in the same commit.
    of: the engagement table that the log was read into; rows of others that are in the catalog stay. All go if None.
    Raises ValueError if a column is missing, a reason or file is null, or the name is that of a table of other rows;
    ConflictError if others were faster again and again.
    """
    rows = _conform(rejects, of)
    check_rejects_table(catalog, identifier)
    exists = catalog.table_exists(identifier)
    retries = CommitRetries.of(catalog.load_table(identifier).properties if exists else {})
    for attempt in range(retries.count + 1):  # another ingest into the namespace writes its own rejects here
        try:
            return _write_once(catalog, identifier, rows, of)
        except Exception as error:
            if not is_conflict(error):
                raise
            if attempt == retries.count:
                raise ConflictError(
                    f"{identifier}: others still commit faster after {retries}; ingest again when they are done"
                ) from error
            retries.wait(attempt)
    raise AssertionError("unreachable")


def _write_once(catalog: Catalog, identifier: str, rows: pa.Table, of: str | None) -> Table:
    if not catalog.table_exists(identifier):
        with catalog.create_table_transaction(
            identifier,
            _SCHEMA,
            properties={"comment": "rows that the last ingest into each table of this namespace rejected"},
        ) as transaction:
            transaction.append(rows)
        return catalog.load_table(identifier)
    table = catalog.load_table(identifier)
    scan_tasks(table)  # names a manifest that is damaged
    with warnings.catch_warnings(), one_attempt(table) as transaction:
        warnings.filterwarnings("ignore", "Delete operation did not match any records")  # none were rejected before
        kept = _of_other_tables(catalog, table, of)
        added = [_SCHEMA.find_field(name) for name in _ADDED if name not in table.schema().column_names]
        if added:
            with transaction.update_schema() as update:
                for field in added:
                    update.add_column(field.name, field.field_type, doc=field.doc)
        transaction.overwrite(
            pa.concat_tables([kept, rows], promote_options="permissive") if kept is not None else rows
        )
    return table


def _of_other_tables(catalog: Catalog, table: Table, of: str | None) -> pa.Table | None:
    """Rows of the logs of other tables that are still there; None if there are none."""
    if of is None or TABLE_NAME not in table.schema().column_names:
        return None
    rows = table.scan().to_arrow()
    names = rows.column(TABLE_NAME).unique().drop_null().to_pylist()
    others = pa.array(
        [name for name in names if name != of and catalog.table_exists(name)], rows.field(TABLE_NAME).type
    )
    return rows.filter(pc.is_in(rows.column(TABLE_NAME), value_set=others)) if len(others) else None


def _conform(rejects: pa.Table | Iterable[pa.RecordBatch], of: str | None) -> pa.Table:
    wanted = schema_to_pyarrow(_SCHEMA, include_field_ids=False)  # by name: a table may have given them other ids
    if not isinstance(rejects, pa.Table):
        batches = list(rejects)
        if not batches:
            return wanted.empty_table()
        rejects = pa.Table.from_batches(batches)
    if USER_ID not in rejects.column_names:
        rejects = rejects.append_column(USER_ID, pa.nulls(rejects.num_rows, pa.int64()))
    if TABLE_NAME in rejects.column_names:
        rejects = rejects.drop_columns([TABLE_NAME])
    rejects = rejects.append_column(TABLE_NAME, pa.array([of] * rejects.num_rows, pa.string()))
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
