"""The tables of a namespace by what they are to each other: impressions, features of them, rejected rows, what
serving keeps, others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError, ValidationError
from pyiceberg.table import Table

from reqdedup.storage.iceberg.layout import LAYOUT_PROPERTY, table_buckets
from reqdedup.storage.iceberg.vocabulary import is_vocabulary
from reqdedup.storage.maintenance.served_rows import is_served_table
from reqdedup.storage.read.feature_positions import PositionSource
from reqdedup.storage.read.feature_table import MAIN_TABLE_PROPERTY, FeatureSource, is_by_position, is_feature_table
from reqdedup.storage.write.rejects import is_rejects_table


@dataclass(frozen=True, kw_only=True)
class NamespaceTables:
    """engagement, features, rejects: tables that reqdedup made.  served: those that serving keeps (`served_rows`).
    vocabularies: keys of items.  others: what else there is.  unreadable: names of those that pyiceberg cannot load.
    """

    engagement: tuple[Table, ...]
    features: tuple[Table, ...]
    rejects: tuple[Table, ...]
    served: tuple[Table, ...]
    vocabularies: tuple[Table, ...]
    others: tuple[Table, ...]
    unreadable: tuple[str, ...]

    @property
    def with_users(self) -> tuple[Table, ...]:
        """All tables that hold rows of users in a form that is known."""
        return (*self.engagement, *self.features, *self.rejects, *self.served)


def tables_of(catalog: Catalog, namespace: str) -> NamespaceTables:
    """Every table of a namespace. Raises ValueError if there is no such namespace."""
    try:
        names = sorted(".".join(name) for name in catalog.list_tables(namespace))
    except NoSuchNamespaceError:
        names = []
    if not names and not catalog.namespace_exists(namespace):
        there = sorted(".".join(name) for name in catalog.list_namespaces())
        raise ValueError(f"namespace {namespace} is not in the catalog; there are: {', '.join(there) or 'none'}")
    engagement, features, rejects, served, vocabularies, others = [], [], [], [], [], []
    unreadable = []
    for name in names:
        try:
            table = _load(catalog, name)
        except NoSuchTableError:  # dropped since it was listed
            continue
        except ValueError:
            unreadable.append(name)
            continue
        if is_feature_table(table):
            features.append(table)
        elif LAYOUT_PROPERTY in table.properties:
            engagement.append(table)
        elif is_rejects_table(table):
            rejects.append(table)
        elif is_served_table(table):
            served.append(table)
        elif is_vocabulary(table):
            vocabularies.append(table)
        else:
            others.append(table)
    return NamespaceTables(
        engagement=tuple(engagement),
        features=tuple(features),
        rejects=tuple(rejects),
        served=tuple(served),
        vocabularies=tuple(vocabularies),
        others=tuple(others),
        unreadable=tuple(unreadable),
    )


LISTING_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("kind", pa.string()),
        ("layout", pa.string()),
        ("buckets", pa.int32()),
        ("rows", pa.int64()),
        ("files", pa.int64()),
        ("bytes", pa.int64()),
        ("snapshot_id", pa.int64()),
    ]
)
"""kind: engagements, features, rejects, items, other, or unreadable, of which only the name is known.  layout: null if
it has none.  rows, files, bytes: of the snapshot."""


def list_tables(catalog: Catalog, namespace: str | None = None) -> pa.Table:
    """Every table of the catalog, or of a namespace, by name (LISTING_SCHEMA); from its metadata, no data file is read.

    Raises ValueError if there is no such namespace.
    """
    namespaces = [namespace] if namespace else sorted(".".join(name) for name in catalog.list_namespaces())
    rows: list[dict[str, Any]] = []
    for one in namespaces:
        found = tables_of(catalog, one)
        kinds = {"engagements": found.engagement, "features": found.features, "rejects": found.rejects}
        kinds["items"] = found.vocabularies
        kinds["other"] = (*found.served, *found.others)
        rows += [_listed(kind, table) for kind, of_kind in kinds.items() for table in of_kind]
        rows += [{"table": name, "kind": "unreadable"} for name in found.unreadable]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["table"]), LISTING_SCHEMA)


def _listed(kind: str, table: Table) -> dict[str, Any]:
    snapshot = table.current_snapshot()
    summary = snapshot.summary if snapshot is not None else None
    totals = {
        name: int(summary.get(total) or 0) if summary is not None else 0
        for name, total in (("rows", "total-records"), ("files", "total-data-files"), ("bytes", "total-files-size"))
    }
    return {
        "table": ".".join(table.name()),
        "kind": kind,
        "layout": table.properties.get(LAYOUT_PROPERTY) if kind == "engagements" else None,
        "buckets": table_buckets(table) if kind in ("engagements", "features") else None,
        **totals,
        "snapshot_id": snapshot.snapshot_id if snapshot is not None else None,
    }


def load_listed(catalog: Catalog, name: str) -> Table:
    """The table of this name. Raises ValueError if there is none, naming those that there are."""
    if "." not in name.strip("."):
        raise ValueError(f"a table is named as namespace.table, found {name!r}; {_tables_there(catalog)}")
    try:
        return _load(catalog, name)
    except (NoSuchTableError, NoSuchNamespaceError):
        raise ValueError(f"table {name} is not in the catalog; {_tables_there(catalog)}") from None


def _load(catalog: Catalog, name: str) -> Table:
    """The table. Raises ValueError for metadata that pyiceberg does not read, as with the type variant."""
    try:
        return catalog.load_table(name)
    except (ValueError, ValidationError) as error:
        details: list[dict[str, Any]] = getattr(
            error.__cause__ or error, "errors", list
        )()  # pydantic's, each with its text
        found = "; ".join(dict.fromkeys(str(one["msg"]) for one in details)) or str(error)
        raise ValueError(
            f"table {name}: column types that pyiceberg {version('pyiceberg')} knows required, found others ({found}); "
            "have the engine that wrote it copy the other columns (CREATE TABLE ... AS SELECT ...), and name the copy"
        ) from None


def _tables_there(catalog: Catalog) -> str:
    names = [".".join(name) for namespace in catalog.list_namespaces() for name in catalog.list_tables(namespace)]
    if names:
        return f"there are: {', '.join(sorted(names)[:20])}"
    return (
        f"there are none under the catalog name {catalog.name!r}: run `reqdedup ingest` first, or name a SQL catalog "
        "as those who wrote to it did (`make run`: reqdedup)"
    )


def feature_tables_of(main_table: Table) -> tuple[Table, ...]:
    """The feature tables of a table that lie in its namespace."""
    *namespace, _ = main_table.name()
    name = ".".join(main_table.name())
    found = tables_of(main_table.catalog, ".".join(namespace)).features
    return tuple(table for table in found if table.properties.get(MAIN_TABLE_PROPERTY) == name)


def to_realign(main_table: Table, snapshot_ids: Iterable[int]) -> tuple[Table, ...]:
    """Feature tables by position, in its namespace, of which a file was made from one of these
    snapshots of the main table.

    `realign` them before the snapshots expire: if requests came or went since, only the snapshot tells whose values
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
