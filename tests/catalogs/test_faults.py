"""A catalog that is down, slow, or refuses: a clear error in bounded time, naming what is wrong and no credential."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Iterator

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.environment import LakePlace
from reqdedup.storage.iceberg.catalogs import open_catalog
from tests.catalogs.conftest import postgres_config
from tests.servers.postgres import Postgres
from tests.servers.process import LOOPBACK, free_ports
from tests.servers.seaweedfs import SeaweedFS

LIMIT_S = 1.0
SECRET = "a-secret-that-no-text-may-show"

pytestmark = pytest.mark.servers


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen(64)
        yield listener.getsockname()[1]


def quick(properties: dict[str, str]) -> Catalog:
    return open_catalog("fault", properties, connect_timeout_s=LIMIT_S, answer_timeout_s=LIMIT_S)


def rest_at(seaweedfs: SeaweedFS, port: int) -> dict[str, str]:
    uri = f"http://{LOOPBACK}:{port}"
    return {**seaweedfs.rest_properties, "uri": uri, "oauth2-server-uri": f"{uri}/v1/oauth/tokens"}


def shown(error: BaseException) -> str:
    """All that a traceback of it shows, causes included."""
    return "".join(traceback.format_exception(error))


def test_a_catalog_that_is_down_is_named(postgres: Postgres, seaweedfs: SeaweedFS) -> None:
    (port,) = free_ports(1)
    for properties in (
        rest_at(seaweedfs, port),
        postgres_config(postgres, seaweedfs, uri=postgres.uri(port=port)).properties,
    ):
        with pytest.raises(ConnectionError, match=rf"127\.0\.0\.1:{port}.*refused.*check uri") as caught:
            quick(properties)
        assert postgres.password not in shown(caught.value)
        assert seaweedfs.secret_key not in shown(caught.value)


def test_a_silent_catalog_is_not_waited_for(postgres: Postgres, seaweedfs: SeaweedFS, silent_port: int) -> None:
    for properties in (
        rest_at(seaweedfs, silent_port),
        postgres_config(postgres, seaweedfs, uri=postgres.uri(port=silent_port)).properties,
    ):
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=rf"127\.0\.0\.1:{silent_port}.*check that"):
            quick(properties)
        assert time.monotonic() - started < 8 * LIMIT_S


def test_a_rest_catalog_that_stops_answering_is_not_waited_for(seaweedfs: SeaweedFS) -> None:
    catalog = quick(seaweedfs.rest_properties)
    seaweedfs.server.pause()
    try:
        with pytest.raises(TimeoutError, match="answer within 1 s required"):
            catalog.list_namespaces()
    finally:
        seaweedfs.server.resume()
    assert isinstance(catalog.list_namespaces(), list)


def test_a_locked_sql_catalog_is_not_waited_for(postgres: Postgres, seaweedfs: SeaweedFS) -> None:
    import psycopg2

    catalog = quick(postgres_config(postgres, seaweedfs).properties)
    holder = psycopg2.connect(postgres.uri().replace("+psycopg2", ""))
    try:
        holder.cursor().execute("lock table iceberg_tables in access exclusive mode")
        with pytest.raises(TimeoutError, match="what holds its locks"):
            catalog.list_namespaces()
    finally:
        holder.close()
    assert isinstance(catalog.list_namespaces(), list)


def test_a_restarted_database_is_met_with_a_new_connection(postgres: Postgres, seaweedfs: SeaweedFS) -> None:
    import psycopg2

    catalog = quick(postgres_config(postgres, seaweedfs).properties)
    catalog.list_namespaces()
    with psycopg2.connect(postgres.uri().replace("+psycopg2", "")) as connection:
        connection.cursor().execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and usename is not null"
        )
    connection.close()
    assert isinstance(catalog.list_namespaces(), list)


def test_a_wrong_credential_is_refused_without_being_shown(postgres: Postgres, seaweedfs: SeaweedFS) -> None:
    rest = {**seaweedfs.rest_properties, "credential": f"somebody:{SECRET}"}
    sql = postgres_config(postgres, seaweedfs, uri=postgres.uri(password=SECRET)).properties
    for properties, found in ((rest, "refused the credential"), (sql, "refused the password")):
        with pytest.raises(PermissionError, match=found) as caught:
            quick(properties)
        assert SECRET not in shown(caught.value)


def test_an_expired_token_is_renewed_from_the_credential(seaweedfs: SeaweedFS) -> None:
    catalog = quick(seaweedfs.rest_properties)
    catalog._session.auth.auth_manager._token = "expired"  # type: ignore[attr-defined]  # of OAuth2 alone
    assert isinstance(catalog.list_namespaces(), list)


def test_an_expired_token_without_a_credential_says_what_to_set(seaweedfs: SeaweedFS, namespace: str) -> None:
    without = {key: value for key, value in seaweedfs.rest_properties.items() if key not in ("credential", "scope")}
    catalog = quick({**without, "token": SECRET})
    for call in (catalog.list_namespaces, lambda: catalog.create_namespace(namespace)):
        with pytest.raises(
            PermissionError, match=r"wrong or has expired; set a new `token`, or `credential`"
        ) as caught:
            call()
        assert SECRET not in shown(caught.value)
    with pytest.raises(PermissionError, match="none given"):
        quick(without).list_namespaces()


def test_properties_that_name_no_catalog_are_refused_without_being_shown() -> None:
    for properties, found in (
        ({"uri": f"mysql://user:{SECRET}@127.0.0.1/x"}, "starts with http, sqlite"),
        ({"uri": f"postgresql+psycopg2:/{SECRET}@x"}, "URL"),
        ({"uri": f"postgresql://user:{SECRET}@127.0.0.1/x"}, r"postgresql\+psycopg2://"),
        ({"type": SECRET, "token": SECRET}, "CatalogType"),
        ({"type": "rest", "token": SECRET}, "uri required"),
    ):
        with pytest.raises(ValueError, match=found) as caught:
            quick(properties)
        assert SECRET not in shown(caught.value)


def test_files_that_cannot_be_reached_end_the_call(postgres: Postgres, seaweedfs: SeaweedFS, namespace: str) -> None:
    (port,) = free_ports(1)
    properties = postgres_config(postgres, seaweedfs).properties
    for changed in ({"s3.endpoint": f"http://{LOOPBACK}:{port}"}, {"s3.secret-access-key": SECRET}):
        catalog = open_catalog("fault", {**properties, **changed})
        catalog.create_namespace_if_not_exists(namespace)
        started = time.monotonic()
        with pytest.raises(OSError, match=r"NETWORK_CONNECTION|ACCESS_DENIED") as caught:
            catalog.create_table(f"{namespace}.t", pa.schema([("a", pa.int64())]))
        assert time.monotonic() - started < 10
        assert SECRET not in shown(caught.value)
        assert catalog.list_tables(namespace) == []


def test_a_config_shows_no_credential(seaweedfs: SeaweedFS) -> None:
    config = LakePlace(said_by="the test", properties=seaweedfs.rest_properties)
    assert seaweedfs.secret_key not in repr(config) + str(config)
    catalog = open_catalog(config.catalog_name, config.properties)
    assert seaweedfs.secret_key not in repr(catalog) + str(catalog)
