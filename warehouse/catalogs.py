"""Catalogs: the embedded default (SQLite and local files) and any other that pyiceberg opens.

Nothing here reads the environment: `pipelines.environment` does, and hands over a `CatalogConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pyiceberg.catalog import Catalog

from reqdedup.storage.iceberg import catalogs

DATA_DIR = Path(__file__).resolve().parent / "data"
"""Where the embedded default keeps its catalog, tables, models and run history (git-ignored)."""


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """What pyiceberg needs to open a catalog.

    name: the catalog's name in pyiceberg.
    properties: pyiceberg catalog properties (`type`, `uri`, `warehouse`, `s3.endpoint`, ...). Credentials belong here
        only as they came from the environment; the field stays out of `repr`, so that no log or report shows it.
    """

    name: str = "reqdedup"
    properties: dict[str, str] = field(default_factory=dict, repr=False)


def embedded_catalog(data_dir: Path | str = DATA_DIR) -> CatalogConfig:
    """SQLite catalog and local files under `data_dir`: needs no server, holds one writer at a time per table."""
    data_dir = Path(data_dir).resolve()
    return CatalogConfig(
        properties={
            "type": "sql",
            "uri": f"sqlite:///{data_dir / 'catalog.db'}",
            "warehouse": f"file://{data_dir / 'tables'}",
        }
    )


def open_catalog(config: CatalogConfig | None = None) -> Catalog:
    """Open the catalog; without a config the embedded one.

    Raises ConnectionError, TimeoutError, PermissionError or ValueError that name the catalog and show no credential.
    """
    config = config or embedded_catalog()
    uri = config.properties.get("uri", "")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return catalogs.open_catalog(config.name, config.properties)
