"""A run file of a training on remote files names no credential, and is read with those of the environment."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.training.plan import source_for_ranks, source_from_dict, source_to_dict
from tests.catalogs.conftest import new_namespace, postgres_config
from tests.catalogs.rows import plain, same
from tests.servers.postgres import Postgres
from tests.servers.seaweedfs import SeaweedFS
from warehouse.catalogs import open_catalog


@pytest.mark.servers
def test_a_run_file_of_files_on_s3_takes_credentials_from_the_environment(
    postgres: Postgres,
    seaweedfs: SeaweedFS,
    schema: EngagementSchema,
    batches: list[pa.RecordBatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalog = open_catalog(postgres_config(postgres, seaweedfs))
    table = create_table(catalog, f"{new_namespace()}.t", schema, Layout.BY_REQUEST, num_buckets=2)
    write(table, batches)
    source = source_for_ranks(TableSource(table))
    text = json.dumps(source_to_dict(source))
    assert seaweedfs.access_key not in text
    assert seaweedfs.secret_key not in text
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    assert same(plain(batches), plain(source_from_dict(json.loads(text)).batches()))
