"""The catalog of the storage benchmarks, SQLite and local files in one folder, and logs as Arrow streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog import Catalog

from reqdedup.storage import open_catalog


def local_catalog(folder: Path) -> Catalog:
    """The catalog in `folder`, made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    return open_catalog(
        "bench", {"type": "sql", "uri": f"sqlite:///{folder / 'catalog.db'}", "warehouse": f"file://{folder / 'lake'}"}
    )


def write_stream(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Keep batches in a file, uncompressed, dictionaries as they are."""
    writer = None
    with pa.OSFile(str(path), "w") as sink:
        for batch in batches:
            writer = writer or pa.ipc.new_stream(sink, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()


def read_stream(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of such a file, one in memory at a time."""
    if path.stat().st_size:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            yield from reader
