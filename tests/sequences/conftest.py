"""The stores that every behaviour is tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import FilledStore
from tests.sequences.plain_store import COLUMNS


@pytest.fixture
def new_store(tmp_path) -> Iterator[Callable[[], FilledStore]]:
    """Makes an empty store at each call."""
    made = []

    def make() -> FilledStore:
        made.append(SqliteStore(tmp_path / f"{len(made)}.sqlite", COLUMNS))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(new_store) -> FilledStore:
    return new_store()
