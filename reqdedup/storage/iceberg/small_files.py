"""Small files of a store, fetched whole: one request for their bytes, and none when they are opened again.

Reading a Parquet file asks the store for its size, its end and its columns, and whoever reads footers first opens each
twice. At some 50 ms a request that is most of the time of a small file. What was fetched stays while there is room, and
is never pushed out: of a long table the first files stay, and of the others no more is fetched than is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

SMALL_BYTES = 8 * 2**20
"""Size up to which a file is small."""

MAX_BYTES = 64 * 2**20
"""Of all files that are kept by one reader."""


def fetched(stream: Any, size_bytes: int | None = None) -> Any:
    """The stream; of a small file of a store, its bytes fetched in one request. size_bytes: if it is known."""
    if isinstance(stream, pa.MemoryMappedFile | pa.OSFile | pa.BufferReader):
        return stream
    if (stream.size() if size_bytes is None else size_bytes) > SMALL_BYTES:
        return stream
    with contextlib.closing(stream):
        return pa.BufferReader(stream.read())


class SmallFiles:
    """Files by path. max_bytes: of those that are kept."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._room = max_bytes
        self._kept: dict[str, pa.Buffer] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_room": self._room + sum(kept.size for kept in self._kept.values()), "_kept": {}}

    def keep(self, path: str, data: bytes) -> None:
        """Take the bytes of a file that was written, so that they need not be fetched."""
        if len(data) <= min(SMALL_BYTES, self._room) and path not in self._kept:
            self._kept[path] = pa.py_buffer(data)
            self._room -= len(data)

    def size_of(self, path: str) -> int | None:
        """Bytes of a file that is kept."""
        return self._kept[path].size if path in self._kept else None

    def open(self, path: str, open_stream: Callable[[], Any], *, is_last: bool = False) -> Any:
        """The file's bytes. open_stream: opens it in its store.  is_last: it will not be opened again."""
        kept = self._kept.get(path)
        if kept is None:
            stream = open_stream()
            if isinstance(stream, pa.MemoryMappedFile | pa.OSFile) or is_last or stream.size() > self._room:
                return stream
            stream = fetched(stream)
            if not isinstance(stream, pa.BufferReader):
                return stream
            kept = self._kept[path] = stream.read_buffer()
            self._room -= kept.size
        if is_last:
            del self._kept[path]
            self._room += kept.size
        return pa.BufferReader(kept)
