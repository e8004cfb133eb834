"""Tables of the small log, and the plain ways of reading them that the tests compare with."""

from __future__ import annotations

from pathlib import Path

from reqdedup.storage import Layout, create_table
from tests.storage.small_log import log_schema


def rows_of(batches) -> list[tuple]:
    """Every row as plain Python values, in a canonical order: the independent definition of what a table holds."""
    rows = []
    for batch in batches:
        rows += [tuple(row.values()) for row in batch.to_pylist()]
    return sorted(rows, key=repr)


def files_of(table) -> list[str]:
    return [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]


def new_table(catalog, layout: Layout, *, num_buckets: int = 4):
    return create_table(catalog, f"test.{layout.value}", log_schema(), layout, num_buckets=num_buckets)


def data_files_on_disk(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "lake").rglob("*.parquet"))
