"""What an operation asks of store and catalog: not more than it needs, and an audit nothing but reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlparse

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from benchmarks.counting_proxy import CountingProxy
from reqdedup.audit import audit_table
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, compact, create_table, open_catalog, write
from tests.catalogs.conftest import new_namespace
from tests.servers.seaweedfs import SeaweedFS

pytestmark = pytest.mark.servers
NUM_BUCKETS = 4


class Counted:
    """A REST catalog behind relays; `asked` is what an operation sent to S3 and to the catalog."""

    def __init__(self, catalog: Catalog, s3: CountingProxy, rest: CountingProxy) -> None:
        self.catalog, self._s3, self._rest = catalog, s3, rest

    def asked(self, operation: Callable[[], object]) -> tuple[list[str], list[str]]:
        self._s3.requests.clear()
        self._rest.requests.clear()
        operation()
        s3, rest = ([method for method, _ in one.requests] for one in (self._s3, self._rest))
        return s3, rest


@pytest.fixture
def counted(seaweedfs: SeaweedFS) -> Iterator[Counted]:
    def address(uri: str) -> tuple[str, int]:
        return str(urlparse(uri).hostname), int(urlparse(uri).port or 0)

    with CountingProxy(address(seaweedfs.s3_endpoint)) as s3, CountingProxy(address(seaweedfs.rest_uri)) as rest:
        tokens = f"{rest.uri}/v1/oauth/tokens"
        own = {"uri": rest.uri, "oauth2-server-uri": tokens, "s3.endpoint": s3.uri}
        yield Counted(open_catalog("counted", {**seaweedfs.rest_properties, **own}), s3, rest)


@pytest.mark.slow
def test_a_write_puts_every_file_once_and_an_audit_only_reads(
    counted: Counted, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    namespace = new_namespace()
    counted.catalog.create_namespace(namespace)
    table = create_table(counted.catalog, f"{namespace}.t", schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    s3, rest = counted.asked(lambda: write(table, batches))
    assert s3.count("PUT") == NUM_BUCKETS + 2  # a manifest and the list of manifests
    assert "POST" not in s3  # no upload in parts
    assert len(s3) <= 14
    assert sorted(rest) == ["GET", "POST"]
    s3, rest = counted.asked(lambda: write(table, batches, mode="append"))
    assert len(s3) <= 16
    assert sorted(rest) == ["GET", "POST"]
    s3, rest = counted.asked(lambda: list(TableSource(counted.catalog.load_table(f"{namespace}.t")).batches()))
    assert sorted(s3) == ["GET"] * 11 + ["HEAD"] * 11  # eight files, two manifests and their list
    assert rest == ["GET"]
    s3, rest = counted.asked(lambda: audit_table(table, request_key="request_id", user_key="user_id"))
    assert set(s3) == {"GET", "HEAD"}
    assert len(s3) <= 22
    assert rest == []
    s3, rest = counted.asked(lambda: compact(counted.catalog.load_table(f"{namespace}.t"), force=True))
    assert len(s3) <= 64


@pytest.mark.slow
def test_a_token_that_the_server_has_forgotten_is_renewed_by_the_credential_and_named_without(
    counted: Counted, seaweedfs: SeaweedFS
) -> None:
    catalog = counted.catalog
    catalog._session.headers["Authorization"] = "Bearer expired"
    catalog.list_namespaces()  # the client asks for a new one and repeats
    properties = {**catalog.properties, "token": "expired"}
    del properties["credential"]
    with pytest.raises(PermissionError, match=r"it is wrong or has expired; set a new `token`, or `credential`"):
        open_catalog("tokens", properties).list_namespaces()
