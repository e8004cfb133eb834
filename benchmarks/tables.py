"""The catalog of the storage benchmarks: SQLite and local files in one folder."""

from __future__ import annotations

from pathlib import Path

from pyiceberg.catalog import Catalog

from reqdedup.storage import open_catalog


def local_catalog(folder: Path) -> Catalog:
    """The catalog in `folder`, made where it is not there yet."""
    return open_catalog(
        "bench", {"type": "sql", "uri": f"sqlite:///{folder / 'catalog.db'}", "warehouse": f"file://{folder / 'lake'}"}
    )
