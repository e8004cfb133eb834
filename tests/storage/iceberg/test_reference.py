"""A table by reference: pickled, it opens and reads the same, and carries no catalog and no credential."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.storage.iceberg.reference import TableRef, check_keys
from tests.storage.small_log import log_schema, make_log, to_batches

SECRETS = {"s3.secret-access-key": "TOPSECRET", "s3.access-key-id": "AKIDEXAMPLE", "token": "TOPSECRET"}


@pytest.fixture
def secret_catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "PASSWORD").mkdir()
    return load_catalog(
        "test",
        type="sql",
        uri=f"sqlite:///{tmp_path}/PASSWORD/catalog.db",
        warehouse=f"file://{tmp_path}/lake",
        **SECRETS,
        **{"s3.endpoint": "http://127.0.0.1:1"},
    )


@pytest.fixture
def table(secret_catalog: Catalog) -> Table:
    secret_catalog.create_namespace("n")
    schema, log = log_schema(), make_log(num_users=9, seed=2)
    made = create_table(secret_catalog, "n.t", schema, Layout.BY_REQUEST, num_buckets=4)
    for _ in range(2):
        write(made, to_batches(log))
    return secret_catalog.load_table("n.t")


def assert_no_secret(pickled: bytes) -> None:
    for secret in (b"TOPSECRET", b"AKIDEXAMPLE", b"PASSWORD", b"catalog.db"):
        assert secret not in pickled


def test_a_pickled_reference_opens_the_same_table(table: Table) -> None:
    pickled = pickle.dumps(TableRef.of(table))
    assert_no_secret(pickled)
    opened = pickle.loads(pickled).open()
    assert opened.schema() == table.schema()
    assert opened.spec() == table.spec()
    assert opened.properties == table.properties
    assert opened.io.properties["s3.endpoint"] == "http://127.0.0.1:1"
    assert len(opened.metadata.snapshots) == 1
    there, here = (TableSource(one).to_arrow() for one in (opened, table))
    assert there.equals(here)


@pytest.mark.slow
def test_a_reference_does_not_grow_with_the_history_of_the_table(table: Table) -> None:
    before = len(pickle.dumps(TableRef.of(table)))
    log = make_log(num_users=2, seed=3)
    for _ in range(5):
        write(table, to_batches(log))
    assert len(pickle.dumps(TableRef.of(table))) <= before + 200


def test_a_table_that_holds_a_credential_is_not_referred_to(table: Table) -> None:
    with table.transaction() as transaction:
        transaction.set_properties({"s3.secret-access-key": "TOPSECRET"})
    with pytest.raises(ValueError, match=r"n\.t: properties without credentials required, found s3\.secret-access-key"):
        TableRef.of(table)


def test_pickled_files_read_the_same_and_carry_no_credential(table: Table) -> None:
    files = TableSource(table).files()
    pickled = pickle.dumps(files)
    assert_no_secret(pickled)
    assert pickle.loads(pickled).to_arrow().equals(files.to_arrow())
    assert files.io.properties["s3.secret-access-key"] == "TOPSECRET"  # the one at hand keeps them


VENDED = {"s3.access-key-id": "OF-THE-CATALOG", "s3.secret-access-key": "SECRET", "s3.session-token": "FOR-AN-HOUR"}


def test_keys_that_a_catalog_vends_are_refused_by_name_unless_every_process_has_them(monkeypatch):
    io = PyArrowFileIO({"s3.region": "eu-west-1", **VENDED})
    with pytest.raises(
        ValueError, match=r"^lake\.t: keys of its store.*found s3\.access-key-id, s3\.secret.*, s3\.session"
    ):
        check_keys("lake.t", "s3://lake/t", io)
    check_keys("lake.t", "file:///lake/t", io)  # which need none
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), VENDED.values()):
        monkeypatch.setenv(name, value)
    check_keys("lake.t", "s3://lake/t", io)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "OF-ANOTHER-HOUR")
    with pytest.raises(ValueError, match=r"found s3\.session-token of the catalog, which no task carries"):
        check_keys("lake.t", "s3://lake/t", io)
    check_keys("lake.t", "s3://lake/t", PyArrowFileIO({"s3.region": "eu-west-1"}))  # a role of the machine
