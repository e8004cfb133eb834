"""Opening data files: local ones as memory maps, others through the table's FileIO; one stays open between reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import FileIO

from reqdedup.schema import Column
from reqdedup.storage.iceberg.paths import local_path
from reqdedup.storage.iceberg.small_files import SmallFiles
from reqdedup.storage.read.file_batches import unreadable


def open_parquet(
    path: str,
    io: FileIO | None,
    *,
    footer: pq.FileMetaData | None,
    dictionaries: list[str],
    small_files: SmallFiles | None = None,
) -> pq.ParquetFile:
    """The file at `path`. footer: if it was read before, so that this is the last time.

    dictionaries: binary columns that come as dictionaries, their pages decoded no further than that.
    small_files: keeps what was fetched from one time to the next.
    Raises FileNotFoundError or ValueError that name the file, if it is not there or not whole.
    """
    # Files of our layouts carry a checksum per page: without it most flipped bits would read as other values.
    options = {"read_dictionary": dictionaries, "metadata": footer, "page_checksum_verification": True}
    try:
        local = local_path(path)
        if local is not None:
            return pq.ParquetFile(local, memory_map=True, **options)
        if io is None:
            raise ValueError(f"{path}: not a local file; give FileSource the table's FileIO as io=table.io")
        new_input = io.new_input(path)
        stream = (small_files or SmallFiles(0)).open(path, new_input.open, is_last=footer is not None)
        return pq.ParquetFile(stream, pre_buffer=True, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: data file of the snapshot required, found nothing there; was it swept away or moved?"
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


@dataclass
class OpenFile:
    """A file opened for some columns, and what it calls those that it has, once somebody has looked."""

    file: pq.ParquetFile
    names: dict[str, str] | None = None


class OpenFiles:
    """Keeps the file of the last row group open, since the next one usually is in it."""

    def __init__(self, open_for: Callable[[str, Sequence[Column]], pq.ParquetFile]) -> None:
        self._open_for = open_for
        self._key: tuple[str, tuple[str, ...]] | None = None
        self._opened: OpenFile | None = None

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._opened is not None:
            self._opened.file.close()

    def open(self, path: str, columns: Sequence[Column]) -> OpenFile:
        key = (path, tuple(column.name for column in columns))
        if self._opened is None or self._key != key:
            if self._opened is not None:
                self._opened.file.close()
            self._opened, self._key = OpenFile(self._open_for(path, columns)), key
        return self._opened
