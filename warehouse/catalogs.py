"""Catalogs: the embedded default (SQLite and local files) and any other that pyiceberg opens.

Nothing here reads the environment: `pipelines.environment` does, and hands over a `LakePlace`.
"""

from __future__ import annotations

from pathlib import Path

from pyiceberg.catalog import Catalog

from reqdedup.environment import LakePlace, find_lake
from reqdedup.storage.iceberg import catalogs

DATA_DIR = Path(__file__).resolve().parent / "data"
"""Where the embedded default keeps its catalog, tables, models and run history (git-ignored)."""


def embedded_catalog(data_dir: Path | str = DATA_DIR) -> LakePlace:
    """SQLite catalog and local files under `data_dir`: needs no server, holds one writer at a time per table."""
    return find_lake(Path(data_dir).resolve())


def open_catalog(place: LakePlace | None = None) -> Catalog:
    """Open the catalog; without a place the embedded one.

    Raises ConnectionError, TimeoutError, PermissionError or ValueError that name the catalog and show no credential.
    """
    place = place or embedded_catalog()
    if place.database is not None:
        place.database.parent.mkdir(parents=True, exist_ok=True)
    return catalogs.open_catalog(place.catalog_name, place.properties)
