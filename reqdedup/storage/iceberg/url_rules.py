"""By which URL rules the items of a table were told apart: a property that goes where its rows go."""

from __future__ import annotations

import warnings

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


def warn_of_other_url_rules(items: Table, given: str) -> None:
    """Warn if the keys of a namespace's vocabulary came last from a log with other rules than these."""
    known = url_rules_of(items)
    if known != given and items.current_snapshot() is not None:
        warnings.warn(
            f"{'.'.join(items.name())}: keys of URL rules {known or 'none'} are there, those of this log are of "
            f"{given or 'none'}: a page may be one item in this table and another in the others of the namespace; read "
            "their logs again with the same rules",
            stacklevel=2,
        )


def note_url_rules(items: Table, given: str) -> None:
    """Write into a vocabulary which rules the latest keys are of."""
    if url_rules_of(items) != given:
        with items.transaction() as transaction:
            transaction.set_properties({URL_RULES_PROPERTY: given})
