"""The tables by name, each with its physical form.

A namespace holds one log (`warehouse.namespaces`), so that trying a new log never replaces the tables of another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.table import Table

from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, WriteProgress, WriteReport, replace_table
from reqdedup.storage.iceberg.names import make_namespace
from reqdedup.storage.tasks.write import Rows

ENGAGEMENT_TABLES = {
    "raw_engagements": Layout.ARRIVAL,
    "engagements_shuffled": Layout.SHUFFLED,
    "engagements_sorted": Layout.SORTED,
    "engagements_by_request": Layout.BY_REQUEST,
    "training_sample": Layout.BY_REQUEST,
}
"""Tables that hold impressions, with their layout."""

MADE_FROM = "reqdedup.made-from"
"""Table property: the snapshots that its rows were made from, by table name, as JSON."""


def open_namespace(catalog: Catalog, namespace: str) -> None:
    """Make sure that the namespace exists."""
    try:
        make_namespace(catalog, namespace)
    except Exception:  # pyiceberg 0.12 lets a database's own error through if another process is faster
        if not catalog.namespace_exists(namespace):
            raise


def replace_engagement_table(
    catalog: Catalog,
    namespace: str,
    name: str,
    schema: EngagementSchema,
    batches: Rows,
    *,
    num_buckets: int,
    progress: Callable[[WriteProgress], None] | None = None,
    properties: Mapping[str, str] | None = None,
) -> WriteReport:
    """Make the table `namespace.name` hold exactly these rows in its layout, in one commit; see
    `storage.replace_table`."""
    open_namespace(catalog, namespace)
    return replace_table(
        catalog,
        f"{namespace}.{name}",
        schema,
        ENGAGEMENT_TABLES[name],
        batches,
        num_buckets=num_buckets,
        progress=progress,
        properties=properties,
    )


def load_table(catalog: Catalog, namespace: str, name: str) -> Table:
    """An existing table. Raises ValueError that says which asset makes it."""
    try:
        return catalog.load_table(f"{namespace}.{name}")
    except NoSuchTableError as error:
        raise ValueError(
            f"table {namespace}.{name} is not there; materialize the asset {name} first (`make run` makes all)"
        ) from error


def write_report_table(catalog: Catalog, namespace: str, name: str, rows: pa.Table) -> Table:
    """Replace the small report table `namespace.name` in one commit, with its columns if they have changed."""
    open_namespace(catalog, namespace)
    table = catalog.create_table_if_not_exists(f"{namespace}.{name}", rows.schema)
    replace_rows(table, rows)
    return table


def replace_rows(table: Table, rows: pa.Table) -> None:
    """Replace the rows of a small table in one commit, with its columns if they have changed."""
    found, names = table.schema().as_arrow(), rows.schema.names
    other = [field.name for field in found if field.name not in names or not _same_type(field, rows.schema)]
    with table.transaction() as transaction:
        if table.current_snapshot() is not None:
            transaction.delete(AlwaysTrue())
        if other:
            with transaction.update_schema() as update:
                for column in other:
                    update.delete_column(column)
        if other or names != found.names:
            with transaction.update_schema() as update:
                update.union_by_name(rows.schema)
        transaction.append(rows)


def _same_type(field: pa.Field, schema: pa.Schema) -> bool:
    kind = schema.field(field.name).type
    return field.type == (pa.large_string() if pa.types.is_string(kind) else kind)


def made_from(**tables: Table) -> dict[str, str]:
    """What a table that is made from these says about it."""
    return {MADE_FROM: json.dumps({name: _snapshot_id(table) for name, table in tables.items()})}


def changed_since(table: Table, *sources: Table) -> list[str]:
    """Those of the sources that have another snapshot now than the one that `table` was made from."""
    made_from = json.loads(table.properties.get(MADE_FROM, "{}"))
    return [source.name()[-1] for source in sources if made_from.get(source.name()[-1]) != _snapshot_id(source)]


def check_one_origin(tables: Mapping[str, Table], origin: Table) -> bool:
    """Whether these tables, all made from one snapshot of `origin`, were made from its present one.

    Raises ValueError that names the stale ones if they were made from different snapshots: they may
    hold different logs.
    """
    name = origin.name()[-1]
    found = {made: json.loads(table.properties.get(MADE_FROM, "{}")).get(name) for made, table in tables.items()}
    times = {snapshot.snapshot_id: snapshot.timestamp_ms for snapshot in origin.metadata.snapshots}
    newest = max(found.values(), key=lambda snapshot_id: times.get(snapshot_id, 0))
    stale = [made for made, snapshot_id in found.items() if snapshot_id != newest]
    if stale:
        raise ValueError(
            f"{', '.join(found)}: made from one snapshot of {name} required, found {', '.join(stale)} made from an older one; "
            f"materialize {' and '.join(stale)} first"
        )
    return newest is None or newest == _snapshot_id(origin)


def _snapshot_id(table: Table) -> int | None:
    snapshot = table.current_snapshot()
    return snapshot.snapshot_id if snapshot is not None else None
