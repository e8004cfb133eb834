"""A lake whose catalog's address and properties are secrets, which no task may carry."""

from __future__ import annotations

from pathlib import Path

from pyiceberg.catalog import Catalog, load_catalog

SECRETS = {"s3.secret-access-key": "TOPSECRET", "s3.access-key-id": "AKIDEXAMPLE", "token": "TOPSECRET"}


def open_lake(folder: Path) -> Catalog:
    (folder / "PASSWORD").mkdir(parents=True, exist_ok=True)
    lake = load_catalog(
        "test", type="sql", uri=f"sqlite:///{folder}/PASSWORD/catalog.db", warehouse=f"file://{folder}/lake", **SECRETS
    )
    lake.create_namespace_if_not_exists("lake")
    return lake
