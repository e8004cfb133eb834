"""The Parquet files of a table that a team already has: a folder, files, or an Iceberg snapshot of any catalog.

Nothing is written anywhere. Iceberg's files come from `scan.plan_files()`, never from a listing, and are opened through
the table's own FileIO; columns that were renamed since a file was written are found by their field ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pyiceberg.table import Table

from reqdedup.masking import mask
from reqdedup.storage.foreign.leaves import is_text, same_values

TAIL_BYTES, SIGNATURE_BYTES = 8, 28
"""The end of a Parquet file: the length of the footer, and `PAR1`; before it, where columns are encrypted, nonce and tag."""

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")


@dataclass(frozen=True)
class DataFile:
    """One Parquet file: how to open its bytes, its size, and the file's name of each of the table's columns."""

    path: str
    open_bytes: Callable[[], Any] = field(repr=False, compare=False)
    schema: pa.Schema = field(repr=False)
    name_in_file: dict[str, str] = field(repr=False)
    size_bytes: int

    @contextlib.contextmanager
    def parquet(self, columns: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
        """The opened file; `columns` are those that come as dictionaries where Parquet allows it."""
        names = [self.name_in_file[name] for name in columns if name in self.name_in_file]
        names = [name for name in names if is_text(self.schema.field(name).type)]
        with reading(self.path), contextlib.closing(self.open_bytes()) as stream:
            # Buffered reads, one page at a time: pre_buffer would hold whole column chunks.
            yield pq.ParquetFile(stream, read_dictionary=names, pre_buffer=False, buffer_size=1 << 20)


@dataclass(frozen=True)
class TableFiles:
    """Where a table's rows lie.

    name: for people.  kind: folder, file or iceberg.  schema: the table's columns, types that hold every file's values.
    notes: what a reader of the report must know about what was, and was not, taken in.
    """

    name: str
    kind: str
    files: tuple[DataFile, ...]
    schema: pa.Schema
    notes: tuple[str, ...] = ()
    partition_columns: tuple[str, ...] = ()


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file in whatever goes wrong with its bytes."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: data file required, found nothing there; was it moved or expired?") from error
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        if "ncrypt" in text or "PARE" in text:
            raise _encrypted(path) from error
        raise ValueError(
            f"{path}: a readable Parquet file required, found a damaged one ({text[:200]}); restore it or leave it out"
        ) from error


def read_footer(path: str, stream: Any) -> pq.ParquetFile:
    """The opened file. Raises ValueError where some of its columns are encrypted under a plain footer.

    pyarrow 26 ends the process when it is asked for the metadata of such a column. A plain footer of an encrypted file is
    followed by a signature, which the length at the end of the file counts and the footer's own does not.
    """
    parquet = pq.ParquetFile(stream, pre_buffer=False)
    stream.seek(-TAIL_BYTES, 2)
    tail_bytes = int.from_bytes(stream.read(4), "little")
    if tail_bytes - parquet.metadata.serialized_size == SIGNATURE_BYTES:
        raise _encrypted(path)
    return parquet


def _encrypted(path: str) -> ValueError:
    return ValueError(
        f"{path}: an unencrypted Parquet file required, found an encrypted one; audit a decrypted copy of some files"
    )


def open_table(source: Table | str | Path | Sequence[str | Path], *, snapshot_id: int | None = None) -> TableFiles:
    """The files of a pyiceberg Table, of a folder (its subfolders too), of one file, or of several files.

    Local paths and any URI that pyarrow opens (s3://, gs://, hdfs://). Raises ValueError where there is no Parquet file,
    where a file cannot be read, or where files disagree on a column's type.
    """
    if isinstance(source, Table):
        return _iceberg_files(source, snapshot_id)
    if snapshot_id is not None:
        raise ValueError("snapshot_id is for Iceberg tables; a folder has no snapshots")
    if isinstance(source, (str, Path)):
        return _listed_files(str(source))
    paths = [str(path) for path in source]
    if not paths:
        raise ValueError("at least one Parquet file required, found an empty list")
    parts = [_listed_files(path) for path in paths]
    name = mask(paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return _united(name, "folder", [file for part in parts for file in part.files], notes)


def _listed_files(uri: str) -> TableFiles:
    location = mask(uri)  # the only form that leaves this function: names, paths and errors are printed
    try:
        filesystem, root = (
            pafs.FileSystem.from_uri(uri) if "://" in uri else (pafs.LocalFileSystem(), str(Path(uri).absolute()))
        )
        info = filesystem.get_file_info(root)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{location}: a folder or file required, cannot open it ({mask(str(error))})") from None
    if info.type == pafs.FileType.NotFound:
        raise ValueError(f"{location}: a folder of Parquet files, or one file, required; found nothing there")
    if info.type == pafs.FileType.File:
        return _united(location, "file", [_footer_of(location, _opener(filesystem, root), info.size)], ())
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    inside = {entry.path: entry.path[len(root) :].strip("/") for entry in found}
    kept = [
        entry
        for entry in found
        if entry.type == pafs.FileType.File
        and entry.path.endswith(PARQUET_SUFFIXES)
        and not any(part.startswith(("_", ".")) for part in inside[entry.path].split("/"))
    ]
    if not kept:
        raise ValueError(
            f"{location}: at least one Parquet file ({', '.join(PARQUET_SUFFIXES)}) required, found {len(found):,} other "
            "entries; give the folder that holds the data files"
        )
    kept.sort(key=lambda entry: entry.path)
    files = [_footer_of(entry.path, _opener(filesystem, entry.path), entry.size) for entry in kept]
    partitions = sorted(
        {part.partition("=")[0] for name in inside.values() for part in name.split("/")[:-1] if "=" in part}
    )
    return _united(location, "folder", files, tuple(_folder_notes(inside.values(), partitions)), tuple(partitions))


def _folder_notes(names: Any, partitions: list[str]) -> Iterator[str]:
    names = list(names)
    if any(name.endswith(".metadata.json") for name in names):
        yield (
            "the folder is that of an Iceberg table: files that its snapshot no longer has were counted too; "
            "audit it through its catalog instead"
        )
    if any(name.startswith("_delta_log/") or "/_delta_log/" in name for name in names):
        yield "the folder is that of a Delta table: files that were removed from it and not vacuumed were counted too"
    if partitions:
        yield f"partition columns that are only in folder names were left out: {', '.join(partitions)}"


def _opener(filesystem: pafs.FileSystem, path: str) -> Callable[[], Any]:
    return lambda: filesystem.open_input_file(path)


def _footer_of(
    path: str, open_bytes: Callable[[], Any], size_bytes: int, schema_names: dict[int, str] | None = None
) -> DataFile:
    with reading(path), contextlib.closing(open_bytes()) as stream:
        schema = read_footer(path, stream).schema_arrow
    names = {}
    for column in schema:
        field_id = (column.metadata or {}).get(b"PARQUET:field_id")
        if schema_names is None or field_id is None:
            names[column.name] = column.name
        elif int(field_id) in schema_names:
            names[schema_names[int(field_id)]] = column.name
    return DataFile(path, open_bytes, schema, names, size_bytes)


def _iceberg_files(table: Table, snapshot_id: int | None) -> TableFiles:
    name = ".".join(table.name())
    if snapshot_id is None and table.current_snapshot() is None:
        raise ValueError(f"{name}: a table with rows required, found no snapshot; write something first")
    tasks = list(table.scan(snapshot_id=snapshot_id).plan_files())
    if not tasks:
        raise ValueError(f"{name}: a table with rows required, found a snapshot without data files")
    other = sorted({str(task.file.file_format).rpartition(".")[2] for task in tasks} - {"PARQUET"})
    if other:
        raise ValueError(
            f"{name}: Parquet data files required, found {', '.join(other)}; this audit reads only Parquet"
        )
    names = {column.field_id: column.name for column in table.schema().fields}
    files = [
        _footer_of(
            task.file.file_path, _iceberg_opener(table, task.file.file_path), task.file.file_size_in_bytes, names
        )
        for task in sorted(tasks, key=lambda task: task.file.file_path)
    ]
    deletes = {delete.file_path for task in tasks for delete in task.delete_files}
    notes = (
        (
            f"{len(deletes):,} delete files were not applied: rows that they delete are still in the data files and were counted",
        )
        if deletes
        else ()
    )
    return _united(name, "iceberg", files, notes)


def _iceberg_opener(table: Table, path: str) -> Callable[[], Any]:
    parsed = urlparse(path)
    if parsed.scheme in ("", "file"):
        return lambda: pa.OSFile(unquote(parsed.path) if parsed.scheme else path)
    return lambda: table.io.new_input(path).open()


def _united(
    name: str, kind: str, files: list[DataFile], notes: tuple[str, ...], partitions: tuple[str, ...] = ()
) -> TableFiles:
    """One schema over all files; the columns in the order in which they are first met."""
    types: dict[str, pa.DataType] = {}
    first_file: dict[str, str] = {}
    for file in files:
        for column, in_file in file.name_in_file.items():
            found = file.schema.field(in_file).type
            known = types.setdefault(column, found)
            first_file.setdefault(column, file.path)
            both = same_values(known, found)
            if both is None:
                raise ValueError(
                    f"{name}: one type per column required, found {column} as {known} in {first_file[column]} and as "
                    f"{found} in {file.path}; audit files of one schema at a time"
                )
            types[column] = both
    missing = [column for column in types if any(column not in file.name_in_file for file in files)]
    if missing:
        notes += (f"columns that some files do not have count as null there: {', '.join(missing[:8])}",)
    schema = pa.schema([pa.field(column, kind) for column, kind in types.items()])
    return TableFiles(name, kind, tuple(files), schema, notes, partitions)
