"""A driver to be killed: `python -m tests.storage.tasks.killed_driver FOLDER [ENGINE]`, which says when it begins to write,
and when it has ended."""

from __future__ import annotations

import sys
from pathlib import Path

from pyiceberg.catalog import Catalog, load_catalog

from reqdedup.storage import TableSource, write
from reqdedup.storage.tasks import parts


def open_lake(folder: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


if __name__ == "__main__":
    lake = open_lake(Path(sys.argv[1]))
    parts.MAP_ROWS = 3_000
    print("begins", flush=True)
    engine = sys.argv[2] if len(sys.argv) > 2 else "processes:2"
    write(lake.load_table("test.t"), TableSource(lake.load_table("test.source")), engine=engine)
    print("ended", flush=True)
