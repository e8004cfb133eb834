"""Parquet files in a folder of any storage, and whether the folder belongs to a table of Iceberg, Delta or Hudi.

Such a table's folder holds files that its newest version no longer has, rows among them that were deleted. So the
folder, all folders in it and all around it are searched for what these formats leave.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from reqdedup.display import counted
from reqdedup.masking import has_credentials, mask
from reqdedup.storage.foreign.files import PACKED_SUFFIXES, DataFile, TableFiles, open_file, united

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")

OTHER_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".orc")
"""Of files that hold rows in other formats."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""Of a folder's name, the value null."""


def folder_files(uri: str) -> TableFiles:
    """The files under a local path or a URI that pyarrow opens (s3://, gs://, hdfs://); a file is a folder of one.

    Raises ValueError if there is no Parquet file, or if one cannot be read.
    """
    location = mask(uri)  # the only form that leaves this function: names, paths and errors are printed
    try:
        filesystem, root = _filesystem(uri)
        info = filesystem.get_file_info(root)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{location}: a folder or file required, cannot open it ({mask(str(error))})") from None
    if info.type == pafs.FileType.NotFound:
        raise ValueError(f"{location}: a folder of Parquet files, or one file, required; found nothing there")
    around = table_around(filesystem, root)
    if info.type == pafs.FileType.File:
        return _marked(united(location, "file", [_file(filesystem, root, info.size, uri)]), around)
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    inside = {entry.path: entry.path[len(root) :].strip("/") for entry in found}
    kept = [
        entry
        for entry in found
        if entry.type == pafs.FileType.File
        and entry.path.endswith(PARQUET_SUFFIXES)
        and not any(part.startswith(("_", ".")) for part in inside[entry.path].split("/"))
    ]
    other = [name for entry in found if entry.type == pafs.FileType.File if _is_other_log(name := inside[entry.path])]
    if not kept:
        shown = f" ({', '.join(sorted(other)[:3])})" if other else ""
        raise ValueError(
            f"{location}: at least one Parquet file ({', '.join(PARQUET_SUFFIXES)}) required, found {len(found):,} "
            f"other entries{shown}; give the folder that holds the data files. Packed ones must be unpacked; logs of "
            "text are read by `reqdedup ingest`"
        )
    kept.sort(key=lambda entry: entry.path)
    files = [_file(filesystem, entry.path, entry.size, uri) for entry in kept]
    values = _partition_values({entry.path: inside[entry.path] for entry in kept})
    files = [replace(file, constants=values.get(file.path, {})) for file in files]
    within = next((table for name in inside.values() if (table := _format_of(root, name))), None)
    read = _marked(united(location, "folder", files), around or within)
    if not other:
        return read
    note = f"left out of the folder, as no Parquet: {counted(len(other), 'file')}, {', '.join(sorted(other)[:8])}"
    return replace(read, notes=(*read.notes, note))


def _is_other_log(name: str) -> bool:
    """Whether a file that is no Parquet file by its name may hold rows nevertheless."""
    is_shown = not any(part.startswith(("_", ".")) for part in name.split("/"))
    return is_shown and name.endswith((*PACKED_SUFFIXES, *OTHER_SUFFIXES)) and not _is_iceberg_metadata(name)


def _partition_values(names: dict[str, str]) -> dict[str, dict[str, pa.Scalar]]:
    """Path -> values of the columns that stand in its folders' names (`day=2026-11-27/`), by paths below the root.

    A column is of whole numbers or of dates if every one of its names is written as one, else text as it stands there:
    `01` is text. `__HIVE_DEFAULT_PARTITION__` is null.
    """
    texts: dict[str, dict[str, str | None]] = {}
    for path, name in names.items():
        for part in name.split("/")[:-1]:
            column, is_pair, value = part.partition("=")
            if is_pair and column:
                texts.setdefault(unquote(column), {})[path] = None if value == HIVE_NULL else unquote(value)
    found: dict[str, dict[str, pa.Scalar]] = {}
    for column, of_file in texts.items():
        values = pa.array(of_file.values(), pa.string())
        for kind in (pa.int64(), pa.date32()):
            try:
                typed = values.cast(kind)
            except pa.ArrowInvalid:
                continue
            if typed.cast(pa.string()).equals(values) and typed.null_count < len(typed):
                values = typed
                break
        for path, scalar in zip(of_file, values):
            found.setdefault(path, {})[column] = scalar
    return found


def table_around(filesystem: pafs.FileSystem, path: str) -> str | None:
    """The table that a folder or file lies in, in words; None if nothing around it says so.

    Symbolic links are followed. Folders that cannot be read are passed over.
    """
    places = [path] if not isinstance(filesystem, pafs.LocalFileSystem) else [path, str(Path(path).resolve())]
    for folder in dict.fromkeys(
        one for place in places for one in (PurePosixPath(place), *PurePosixPath(place).parents)
    ):
        markers = [str(folder / name) for name in ("_delta_log", ".hoodie", "metadata")]
        try:
            delta, hudi, metadata = (
                entry.type == pafs.FileType.Directory for entry in filesystem.get_file_info(markers)
            )
            names = filesystem.get_file_info(pafs.FileSelector(markers[2])) if metadata else []
        except (pa.ArrowException, OSError):
            continue
        if delta or hudi:
            return f"{'Delta' if delta else 'Hudi'} table {folder}"
        if any(_is_iceberg_metadata(entry.base_name) for entry in names):
            return f"Iceberg table {folder}"
    return None


def check_no_table(name: str, files: Iterable[Path]) -> None:
    """Raise ValueError if one of these local files belongs to a table of Iceberg, Delta or Hudi. name: what is read."""
    local = pafs.LocalFileSystem()
    for folder in sorted({file.absolute().parent for file in files}):
        refuse_table(name, table_around(local, str(folder)))


def refuse_table(name: str, table_format: str | None) -> None:
    """Raise ValueError for files that are a table's, in words; None if they are nobody's."""
    if table_format is not None:
        raise ValueError(
            f"{name}: Parquet files on their own required, found those of the {table_format}, among them files that "
            "its newest version no longer has; read it through its catalog (`reqdedup convert --source-table` for "
            "Iceberg), or have its engine write it out, and give that folder"
        )


def _format_of(root: str, name: str) -> str | None:
    """The table that an entry below `root` says is there."""
    parts = name.split("/")
    for kind, marker in (("Delta", "_delta_log"), ("Hudi", ".hoodie")):
        if marker in parts:
            return f"{kind} table {'/'.join([root.rstrip('/'), *parts[: parts.index(marker)]])}"
    if _is_iceberg_metadata(parts[-1]) and "metadata" in parts[-2:-1]:
        return f"Iceberg table {'/'.join([root.rstrip('/'), *parts[:-2]])}"
    return None


def _is_iceberg_metadata(name: str) -> bool:
    return name.endswith((".metadata.json", ".metadata.json.gz"))


def _marked(table: TableFiles, table_format: str | None) -> TableFiles:
    return table if table_format is None else replace(table, table_format=table_format)


def _filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    """The storage and the path in it; `%2F` in a URI's path is taken as it stands if there is such a folder."""
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).absolute())
    parts = urlsplit(location)
    if "%" in parts.path:
        filesystem, root = pafs.FileSystem.from_uri(urlunsplit(parts._replace(path=parts.path.replace("%", "%25"))))
        if filesystem.get_file_info(root).type != pafs.FileType.NotFound:
            return filesystem, root
    return pafs.FileSystem.from_uri(location)


@dataclass(frozen=True)
class _Opened:
    """Opens one file. uri: that its storage was found by, for another process."""

    filesystem: pafs.FileSystem
    path: str
    uri: str

    def __call__(self) -> Any:
        return self.filesystem.open_input_file(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        if has_credentials(self.uri):
            raise ValueError(
                f"{mask(self.uri)}: an address without keys required to be read by other processes, which find them in "
                "their environment; leave the keys out of it, or choose engine='inline'"
            )
        return _opened, (self.uri, self.path)


def _opened(uri: str, path: str) -> _Opened:
    return _Opened(_filesystem_of(uri), path, uri)


@cache
def _filesystem_of(uri: str) -> pafs.FileSystem:
    return _filesystem(uri)[0]


def _file(filesystem: pafs.FileSystem, path: str, size_bytes: int, uri: str) -> DataFile:
    return open_file(path, _Opened(filesystem, path, uri), size_bytes)
