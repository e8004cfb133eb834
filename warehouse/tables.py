"""The tables by name, each with its physical form.

A namespace holds one log: `laptop` and `smoke` for the synthetic recipes, a name of its own for every log that is
brought in, so that trying a new log never replaces the tables of another.
"""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.table import Table

from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, create_table

ENGAGEMENT_TABLES = {
    "raw_engagements": Layout.ARRIVAL,
    "engagements_shuffled": Layout.SHUFFLED,
    "engagements_sorted": Layout.SORTED,
    "engagements_by_request": Layout.BY_REQUEST,
    "training_sample": Layout.BY_REQUEST,
}
"""Tables that hold impressions, with their layout."""


def open_namespace(catalog: Catalog, namespace: str) -> None:
    """Make sure that the namespace exists."""
    catalog.create_namespace_if_not_exists(namespace)


def create_engagement_table(
    catalog: Catalog, namespace: str, name: str, schema: EngagementSchema, *, num_buckets: int
) -> Table:
    """The table `namespace.name` in its layout, created where it is not there yet.

    A table of another schema, layout or bucket count is replaced: the graph fills it from the log again.
    """
    open_namespace(catalog, namespace)
    return create_table(catalog, f"{namespace}.{name}", schema, ENGAGEMENT_TABLES[name], num_buckets=num_buckets)


def load_table(catalog: Catalog, namespace: str, name: str) -> Table:
    """An existing table. Raises ValueError that says which asset makes it."""
    try:
        return catalog.load_table(f"{namespace}.{name}")
    except NoSuchTableError as error:
        raise ValueError(
            f"table {namespace}.{name} is not there; materialize the asset {name} first (`make run` makes all)"
        ) from error


def write_report_table(catalog: Catalog, namespace: str, name: str, rows: pa.Table) -> Table:
    """Replace the small report table `namespace.name` in one commit, recreated where its columns have changed."""
    open_namespace(catalog, namespace)
    identifier = f"{namespace}.{name}"
    if catalog.table_exists(identifier):
        table = catalog.load_table(identifier)
        if table.schema().as_arrow().names != rows.schema.names:
            catalog.drop_table(identifier)
    table = catalog.create_table_if_not_exists(identifier, rows.schema)
    with table.transaction() as transaction:
        if table.current_snapshot() is not None:
            transaction.delete(AlwaysTrue())
        transaction.append(rows)
    return table
