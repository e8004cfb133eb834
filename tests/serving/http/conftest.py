"""One server for the session, over the small trained models and a store filled from their table."""

from __future__ import annotations

import pytest

from reqdedup.models.bundle import Bundle
from tests.serving.http.servers import Server, fill_store, requests_of_table


@pytest.fixture(scope="session")
def table_requests(trained_bundles):
    return requests_of_table(trained_bundles.source, Bundle.load(trained_bundles.ranking))


@pytest.fixture(scope="session")
def store_file(table_requests, tmp_path_factory):
    """Read-only: copy it for a server that is sent events."""
    return fill_store(tmp_path_factory.mktemp("store") / "store.db", table_requests)


@pytest.fixture(scope="session")
def server(trained_bundles, store_file):
    """One process, both models, a store; told nothing that changes it."""
    with Server(
        trained_bundles.ranking, trained_bundles.retrieval, "--store", store_file, "--max-waiting", 8
    ) as running:
        yield running
