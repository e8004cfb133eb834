"""The three catalogs that every behaviour is tested on, each a real one, started when the first test asks for it.

| parameter | catalog | files |
|---|---|---|
| sqlite | SQLite | local |
| postgres-s3 | PostgreSQL | S3 (SeaweedFS) |
| rest-s3 | Iceberg REST (SeaweedFS) | S3 (SeaweedFS) |

A server that is not installed fails the tests where CI is set, and elsewhere skips them with the reason in the summary.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.environment import LakePlace
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.schema import EngagementSchema
from tests.servers.postgres import Postgres, start_postgres
from tests.servers.process import ServerMissingError
from tests.servers.seaweedfs import BUCKET, SeaweedFS, start_seaweedfs
from warehouse.catalogs import embedded_catalog, open_catalog

S = TypeVar("S", Postgres, SeaweedFS)

CATALOGS = [
    "sqlite",
    pytest.param("postgres-s3", marks=pytest.mark.servers),
    pytest.param("rest-s3", marks=pytest.mark.servers),
]

LOG = SyntheticLogConfig(
    seed=3,
    num_users=40,
    num_items=2_000,
    mean_requests_per_user=2.0,
    max_requests_per_user=6,
    mean_fan_out=6.0,
    max_fan_out=20,
    median_history=24.0,
    p90_history=60.0,
    max_history=64,
    user_embedding_width=4,
    users_per_block=16,
)


@pytest.fixture(scope="session")
def server_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Data and logs of the servers; kept where a test failed, and named, so that their logs can be read."""
    folder = Path(tempfile.mkdtemp(prefix="reqdedup-servers-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
    failed_before = request.session.testsfailed
    yield folder
    if request.session.testsfailed > failed_before:
        print(f"\nlogs of the servers: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[Postgres]:
    running = _started(start_postgres, server_folder)
    yield running
    running.server.stop()


@pytest.fixture(scope="session")
def seaweedfs(server_folder: Path) -> Iterator[SeaweedFS]:
    running = _started(start_seaweedfs, server_folder)
    yield running
    running.server.stop()


@pytest.fixture(scope="session", params=CATALOGS)
def catalog_config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LakePlace:
    if request.param == "sqlite":
        return embedded_catalog(tmp_path_factory.mktemp("warehouse"))
    seaweedfs: SeaweedFS = request.getfixturevalue("seaweedfs")
    if request.param == "postgres-s3":
        postgres: Postgres = request.getfixturevalue("postgres")
        return postgres_config(postgres, seaweedfs)
    return LakePlace(said_by="the test", properties=seaweedfs.rest_properties)


def postgres_config(postgres: Postgres, seaweedfs: SeaweedFS, *, uri: str = "") -> LakePlace:
    """PostgreSQL as the catalog, files in the bucket of SeaweedFS."""
    return LakePlace(
        said_by="the test",
        properties={
            "type": "sql",
            "uri": uri or postgres.uri(),
            "warehouse": f"s3://{BUCKET}/tables",
            **seaweedfs.s3_properties,
        },
    )


@pytest.fixture(scope="session")
def catalog(catalog_config: LakePlace) -> Catalog:
    return open_catalog(catalog_config)


@pytest.fixture
def namespace() -> str:
    """A namespace of this test's own: the catalogs are shared by all tests of a session."""
    return new_namespace()


def new_namespace() -> str:
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def schema() -> EngagementSchema:
    return synthetic_schema(LOG)


@pytest.fixture(scope="session")
def batches() -> list[pa.RecordBatch]:
    """One small synthetic log as deduplicated batches."""
    return list(synthesize(LOG))


def _started(start: Callable[[Path], S], folder: Path) -> S:
    try:
        return start(folder)
    except ServerMissingError as error:
        missing = str(error)
    if os.environ.get("CI"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)
