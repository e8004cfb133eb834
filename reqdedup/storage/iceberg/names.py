"""Names of tables: their form, and the one that reqdedup keeps for itself in every namespace."""

from __future__ import annotations

REJECTS_TABLE = "rejected_engagements"
"""Name of the table of rejected rows beside the engagement tables of a namespace."""


def split_identifier(identifier: str) -> tuple[str, str]:
    """Namespace and name of a table. Raises ValueError if one of them is missing."""
    namespace, _, name = identifier.rpartition(".")
    if not all(part.strip() for part in (*namespace.split("."), name)):
        raise ValueError(f"table name: namespace.name required, found {identifier!r}")
    return namespace, name


def check_free_name(identifier: str) -> str:
    """The namespace of a table that holds a user's rows. Raises ValueError if its name is that of the rejected rows."""
    namespace, name = split_identifier(identifier)
    if name == REJECTS_TABLE:
        raise ValueError(
            f"table {identifier}: a name other than {REJECTS_TABLE} required, where every ingest puts the rows that it "
            "rejects; choose another name"
        )
    return namespace
