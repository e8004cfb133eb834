"""The tables of a namespace by what they are to each other: impressions, features of them, rejected rows, others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.table import Table

from reqdedup.storage.iceberg.layout import LAYOUT_PROPERTY
from reqdedup.storage.read.feature_positions import PositionSource
from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY, FeatureSource, is_by_position, is_feature_table
from reqdedup.storage.write.rejects import is_rejects_table


@dataclass(frozen=True, kw_only=True)
class NamespaceTables:
    """engagement, features, rejects: tables that reqdedup made.  others: names of what else there is."""

    engagement: tuple[Table, ...]
    features: tuple[Table, ...]
    rejects: tuple[Table, ...]
    others: tuple[str, ...]

    @property
    def with_users(self) -> tuple[Table, ...]:
        """All tables that hold rows of users in a form that is known."""
        return (*self.engagement, *self.features, *self.rejects)


def tables_of(catalog: Catalog, namespace: str) -> NamespaceTables:
    """Every table of a namespace. Raises ValueError where there is no such namespace."""
    try:
        names = sorted(".".join(name) for name in catalog.list_tables(namespace))
    except NoSuchNamespaceError:
        names = []
    if not names and not catalog.namespace_exists(namespace):
        there = sorted(".".join(name) for name in catalog.list_namespaces())
        raise ValueError(f"namespace {namespace} is not in the catalog; there are: {', '.join(there) or 'none'}")
    engagement, features, rejects, others = [], [], [], []
    for name in names:
        try:
            table = catalog.load_table(name)
        except NoSuchTableError:  # dropped since it was listed
            continue
        if is_feature_table(table):
            features.append(table)
        elif LAYOUT_PROPERTY in table.properties:
            engagement.append(table)
        elif is_rejects_table(table):
            rejects.append(table)
        else:
            others.append(name)
    return NamespaceTables(
        engagement=tuple(engagement), features=tuple(features), rejects=tuple(rejects), others=tuple(others)
    )


def feature_tables_of(main_table: Table) -> tuple[Table, ...]:
    """The feature tables of a table that lie in its namespace."""
    *namespace, _ = main_table.name()
    name = ".".join(main_table.name())
    found = tables_of(main_table.catalog, ".".join(namespace)).features
    return tuple(table for table in found if table.properties.get(MAIN_TABLE_PROPERTY) == name)


def to_realign(main_table: Table, snapshot_ids: Iterable[int]) -> tuple[Table, ...]:
    """Feature tables by position, in its namespace, of which a file was made from one of these snapshots of the main table.

    `realign` them before the snapshots expire: where requests came or went since, only the snapshot tells whose values
    they are.
    """
    wanted = set(snapshot_ids)
    if not wanted or is_feature_table(main_table) or LAYOUT_PROPERTY not in main_table.properties:
        return ()
    found = []
    for side in feature_tables_of(main_table):
        if not is_by_position(side):
            continue
        source = FeatureSource(side)
        positions = PositionSource(side, source)
        if any(positions.positions(path).main_snapshot in wanted for path in source.paths):
            found.append(side)
    return tuple(found)
