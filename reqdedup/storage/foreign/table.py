"""A table that a team already has, opened: a folder, files, or an Iceberg snapshot of any catalog.
Nothing is written anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pyiceberg.table import Table

from reqdedup.masking import mask
from reqdedup.storage.foreign.files import TableFiles, united
from reqdedup.storage.foreign.folder import folder_files
from reqdedup.storage.foreign.snapshot import snapshot_files


def open_table(source: Table | str | Path | Sequence[str | Path], *, snapshot_id: int | None = None) -> TableFiles:
    """The files of a pyiceberg Table, of a folder (its subfolders too), of one file, or of several files.

    Local paths and any URI that pyarrow opens (s3://, gs://, hdfs://). Raises ValueError if there is no Parquet file,
    if a file cannot be read, or if files disagree on a column's type.
    """
    if isinstance(source, Table):
        return snapshot_files(source, snapshot_id)
    if snapshot_id is not None:
        raise ValueError("snapshot_id is for Iceberg tables; a folder has no snapshots")
    if isinstance(source, (str, Path)):
        return folder_files(str(source))
    if not isinstance(source, Sequence) or not all(isinstance(path, (str, Path)) for path in source):
        kind = type(source)
        raise ValueError(
            f"Parquet files or an Iceberg table required, found a {kind.__module__.split('.')[0]} {kind.__name__}; "
            "write it to a Parquet file and give its path"
        )
    paths = [str(path) for path in source]
    if not paths:
        raise ValueError("at least one Parquet file required, found an empty list")
    parts = [folder_files(path) for path in paths]
    name = mask(paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
    files = [file for part in parts for file in part.files]
    inside = next((part.table_format for part in parts if part.table_format), None)
    return replace(united(name, "folder", files), table_format=inside)
