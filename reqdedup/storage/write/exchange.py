"""Exchange files: what one map task of a write has for each partition, for the tasks that write the partitions.

    file of map 0 | bucket 0: requests, rows | bucket 1: requests, rows | ...      messages of Arrow IPC, zstd
    file of map 1 | bucket 0: requests, rows | ...                                 one range per (map, bucket)

The two tables of a spill, so that a request's values travel once. A file is written as the spill is read, one batch in
memory; where each partition lies is told to the driver (`Exchanged`), 20 bytes per map and bucket, and no object is
made for it. docs/decisions/0082.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from reqdedup.arrays.ranges import greedy_ranges
from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.storage.iceberg.files import EXCHANGE_FOLDER
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.write.spill import Spill

OPTIONS = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))


MESSAGE_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """One exchange file. partitions: that it has, rising, [K].  ends: where each ends in the file, [K].

    num_requests: messages of requests in each, [K]; those of rows follow them.  num_rows: of each, [K].
    checksum: of all its rows.  note: what the source had to say about them.
    """

    path: str
    partitions: np.ndarray
    ends: np.ndarray
    num_requests: np.ndarray
    num_rows: np.ndarray
    checksum: ContentChecksum
    note: Any = None

    @property
    def num_bytes(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def of(self, partition: int) -> Range | None:
        """Where one partition lies; None if the file has none of it."""
        at = int(np.searchsorted(self.partitions, partition))
        if at == len(self.partitions) or self.partitions[at] != partition:
            return None
        start = int(self.ends[at - 1]) if at else 0
        return Range(self.path, start, int(self.ends[at]), int(self.num_requests[at]))


@dataclass(frozen=True)
class Range:
    """One partition in an exchange file, from byte `start` to `end`: `num_requests` messages, then those of rows."""

    path: str
    start: int
    end: int
    num_requests: int


class ExchangeFolder:
    """Where tasks of a write leave files for one another: under the table's location, named by the write.

    Whoever can write the table can write and read there, and `sweep` finds what a killed driver left.
    paths: of files that the write needs to its end.
    """

    def __init__(self, table: PortableTable, write_id: str) -> None:
        self._table, self._write_id = table, write_id
        self.paths: list[str] = []

    def new_path(self, name: str) -> str:
        """Of a file that nobody has. name: which of the write's."""
        folder = f"{self._table.table.location().rstrip('/')}/{EXCHANGE_FOLDER}"
        return f"{folder}/{self._write_id}-{name}-{uuid.uuid4().hex[:12]}.arrows"

    def create(self, path: str) -> Any:
        """A stream to write the file by, a context manager."""
        return self._table.table.io.new_output(path).create(overwrite=True)  # nobody has this name: do not ask

    def read(self, path: str, start: int, end: int) -> bytes:
        """Its bytes from `start` to `end`."""
        with self._table.table.io.new_input(path).open() as stream:
            stream.seek(start)
            return stream.read(end - start)

    def remove(self, paths: Iterable[str]) -> None:
        """Delete these files. What stays is found by the sweep of orphans."""
        for path in paths:
            with contextlib.suppress(Exception):
                self._table.table.io.delete(path)


def write_exchange(folder: ExchangeFolder, name: str, spill: Spill, checksum: ContentChecksum, note: Any) -> Exchanged:
    """Write a spill that is finished, partition after partition, into a file of this name."""
    path = folder.new_path(name)
    partitions = spill.request_partitions()
    ends, num_requests, num_rows = [], [], []
    with folder.create(path) as stream:
        sink = _Messages(stream)
        of_requests, of_rows = sink.writer(spill.request_schema), sink.writer(spill.row_schema)
        for partition in partitions:
            requests, rows = _together(spill.requests(partition)), _together(spill.row_batches(partition))
            for batch in requests:
                of_requests.write_batch(batch)
            for batch in rows:
                of_rows.write_batch(batch)
            ends.append(sink.num_bytes)
            num_requests.append(len(requests))
            num_rows.append(sum(batch.num_rows for batch in rows))
            spill.release()
    return Exchanged(
        path=path,
        partitions=np.array(partitions, np.int32),
        ends=np.array(ends, np.int64),
        num_requests=np.array(num_requests, np.int32),
        num_rows=np.array(num_rows, np.int32),
        checksum=checksum,
        note=note,
    )


def _together(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The same rows in batches of some MESSAGE_BYTES, if they come in smaller ones: each is compressed alone."""
    ranges = greedy_ranges((MESSAGE_BYTES, np.array([batch.nbytes for batch in batches], np.int64)))
    return [pa.concat_batches(batches[start:end]) if end - start > 1 else batches[start] for start, end in ranges]


class _Messages:
    """The messages of batches of several schemas, without those of the schemas, which the reader knows."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._is_open = stream, False
        self.num_bytes, self.closed = 0, False

    def writer(self, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        self._is_open = False
        writer = pa.ipc.new_stream(pa.PythonFile(self, "w"), schema, options=OPTIONS)
        writer.write_batch(pa.RecordBatch.from_pylist([], schema))  # the schema comes before the first batch
        self._is_open = True
        return writer

    def write(self, data: bytes | pa.Buffer) -> int:
        size = memoryview(data).nbytes
        if self._is_open:
            self._stream.write(data)
            self.num_bytes += size
        return size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_exchange(folder: ExchangeFolder, ranges: Sequence[Range], spill: Spill, partition: int) -> None:
    """Put one partition of several exchange files into a spill, in their order."""
    for one in ranges:
        messages = list(_messages(pa.py_buffer(folder.read(one.path, one.start, one.end))))
        requests = [pa.ipc.read_record_batch(message, spill.request_schema) for message in messages[: one.num_requests]]
        rows = [pa.ipc.read_record_batch(message, spill.row_schema) for message in messages[one.num_requests :]]
        spill.adopt(partition, requests, rows)


def _messages(buffer: pa.Buffer) -> Iterator[pa.Message]:
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(buffer))
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return
