"""By which URL rules the items of a table were told apart: a property that goes where its rows go."""

from __future__ import annotations

from pyiceberg.table import Table

URL_RULES_PROPERTY = "reqdedup.url-rules"
"""Format and fingerprint of the rules as JSON; "" or not there if items are not named by URLs."""


def url_rules_of(table: Table) -> str:
    return table.properties.get(URL_RULES_PROPERTY, "")


def check_same_url_rules(table: Table, given: str) -> None:
    """Raise ValueError if the items of rows for this table were told apart by other rules than its own.

    given: what the property says of them, "" if nothing does. A table without rows takes any.
    """
    own = url_rules_of(table)
    if own != given and table.current_snapshot() is not None:
        raise ValueError(
            f"{'.'.join(table.name())}: items told apart as in its rows required by an append (URL rules "
            f"{own or 'none'}), found rows of URL rules {given or 'none'}, with which a page may be another item; use "
            "the rules of the table, or read all of its logs again with the new ones"
        )
