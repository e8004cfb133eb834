"""Who may only read a catalog and its files can audit, list and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from reqdedup import storage
from reqdedup.audit import audit_table
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, open_catalog, write
from reqdedup.storage.iceberg.private import StoreFileIO


@pytest.mark.slow
def test_an_audit_needs_no_right_to_write(
    tmp_path: Path, schema: EngagementSchema, batches: list[pa.RecordBatch]
) -> None:
    place = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/tables"}
    catalog = open_catalog("mine", place)
    catalog.create_namespace("n")
    write(create_table(catalog, "n.t", schema, Layout.BY_REQUEST, num_buckets=2), batches)
    own = audit_table(catalog.load_table("n.t"), request_key="request_id", user_key="user_id")

    rights = {"uri": f"sqlite:///file:{tmp_path}/catalog.db?mode=ro&uri=true"}
    rights["py-io-impl"] = "tests.catalogs.read_only.ReadOnlyFileIO"
    readers = open_catalog("mine", {**place, **rights})
    table = readers.load_table("n.t")
    found = audit_table(table, request_key="request_id", user_key="user_id")
    assert replace(found, seconds=0) == replace(own, seconds=0)
    assert sum(batch.num_rows for batch in TableSource(table).batches()) == sum(batch.num_rows for batch in batches)
    with pytest.raises(OSError, match="could not be written"):
        storage.write(table, batches)


@pytest.mark.parametrize("said", [{"s3.remote-signing-enabled": "true"}, {"s3.signer": "S3V4RestSigner"}])
def test_a_catalog_that_would_sign_each_request_is_refused_by_name(said: dict[str, str]) -> None:
    files = StoreFileIO({**said, "s3.region": "us-east-1", "s3.endpoint": "http://127.0.0.1:9"})
    with pytest.raises(ValueError, match=r"signs each request itself.* set s3\.access-key-id"):
        files.new_input("s3://lake/x").open()
