"""Names of tables: their form, and those that reqdedup keeps for itself in every namespace."""

from __future__ import annotations

from pyiceberg.catalog import Catalog

from reqdedup.masking import refuse_credentials

REJECTS_TABLE = "rejected_engagements"
"""Name of the table of rejected rows beside the engagement tables of a namespace."""
ITEMS_TABLE = "items"
"""Name of the vocabulary of a namespace: the keys of its dense item ids."""
RUN_TABLE = "graph_run"
"""Name of the table that says which run of the graph makes the tables of a namespace."""
_KEPT = {
    REJECTS_TABLE: "the rows that an ingest rejects",
    ITEMS_TABLE: "the keys of the items",
    RUN_TABLE: "the run that makes the namespace's tables",
}


def split_identifier(identifier: str) -> tuple[str, str]:
    """Namespace and name of a table. Raises ValueError if one of them is missing."""
    namespace, _, name = identifier.rpartition(".")
    if not all(part.strip() for part in (*namespace.split("."), name)):
        raise ValueError(f"table name: namespace.name required, found {identifier!r}")
    return namespace, name


def check_free_name(identifier: str) -> str:
    """The namespace of a table that holds a user's rows. Raises ValueError if its name is one that we keep."""
    namespace, name = split_identifier(identifier)
    kept = name.lower()  # other engines, and some file systems, would take one for the other
    if kept in _KEPT:
        raise ValueError(
            f"table {identifier}: a name other than {kept} required, which is kept for {_KEPT[kept]}; choose another "
            "name"
        )
    return namespace


def check_location(identifier: str, location: str | None) -> None:
    """Raise ValueError for a new table's location that carries a credential: the table would show it to all readers."""
    keys = "give the catalog s3.access-key-id and s3.secret-access-key"
    refuse_credentials(identifier, location or "", instead=keys)


def make_namespace(catalog: Catalog, namespace: str | tuple[str, ...]) -> None:
    """Make the namespace unless it is there.

    pyiceberg looks and then inserts, so of two that do it at once one fails; what counts is that it is there then.
    """
    try:
        catalog.create_namespace_if_not_exists(namespace)
    except Exception:
        if not catalog.namespace_exists(namespace):
            raise
