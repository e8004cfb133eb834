"""The stores that every behaviour is tested on: each a real one, a server started when the first test asks for it.

A server that is not installed fails its tests where CI is set, and elsewhere skips them.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import FilledStore
from tests.sequences.plain_store import COLUMNS
from tests.servers.process import ServerMissingError
from tests.servers.valkey import Valkey, start_valkey


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory) -> Iterator[Valkey]:
    try:
        running = start_valkey(tmp_path_factory.mktemp("valkey"))
    except ServerMissingError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    yield running
    running.server.stop()


@pytest.fixture(params=["sqlite", pytest.param("valkey", marks=pytest.mark.servers)])
def new_store(request, tmp_path) -> Iterator[Callable[[], FilledStore]]:
    """Makes an empty store at each call."""
    made: list[FilledStore] = []

    def make() -> FilledStore:
        if request.param == "sqlite":
            made.append(SqliteStore(tmp_path / f"{len(made)}.sqlite", COLUMNS))
        else:
            from reqdedup.sequences.valkey_store import ValkeyStore

            url = request.getfixturevalue("valkey_server").url
            made.append(ValkeyStore(url, COLUMNS, name=uuid.uuid4().hex, timeout_s=20))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(new_store) -> FilledStore:
    return new_store()
