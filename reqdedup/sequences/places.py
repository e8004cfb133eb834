"""Opening a store by its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reqdedup.sequences.sqlite_store import SqliteStore

if TYPE_CHECKING:
    from reqdedup.sequences.valkey_store import ValkeyStore


def open_store(place: str) -> SqliteStore | ValkeyStore:
    """The store in a file, or at the URL of a Valkey or Redis (valkey://, redis://, unix://)."""
    if "://" not in place:
        return SqliteStore(place)
    from reqdedup.sequences.valkey_store import ValkeyStore  # an extra of its own

    return ValkeyStore(place)
