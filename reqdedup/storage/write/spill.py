"""A log on disk between its arrival and its order: requests once, rows pointing at them, by partition.

    requests: part, user_id, request_id, request-level scalars, blobs      one row per part of a request
    rows:     part, item_id, item-level columns, labels                    one row per impression, in arrival order

Both tables lie in uncompressed Arrow IPC files without a name, so the operating system frees them even when the process
is killed. They are memory-mapped on the way back: what is gathered for one row group is all that is copied.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.keys import run_starts
from reqdedup.arrays.ranges import greedy_ranges, offsets_of, ranges
from reqdedup.dedup.checksum import row_hashes, value_hashes
from reqdedup.dedup.encoding import check_deduplicated, deduplicated_schema, element_type, widened
from reqdedup.dedup.parts import (
    blob_bytes,
    check_blobs,
    check_one_value_per_request,
    check_sequence_lengths,
    split_parts,
)
from reqdedup.dedup.rows import concat
from reqdedup.dedup.stored import large_type
from reqdedup.schema import REQUEST_ID, REQUEST_TS, USER_ID, Column, EngagementSchema
from reqdedup.storage.write.seen import SeenRequests

PART = "reqdedup.part"  # the name of nobody's column
FLUSH_BYTES = 16 * 2**20
"""Of arrived data that is collected before it is written by partition."""

SMALL_ROWS, SMALL_BYTES = 65_536, 8 * 2**20
"""Batches are put together until they hold so many rows or bytes: a batch costs some hundred Arrow
calls, whatever is in it."""

PartitionOf = Callable[[np.ndarray, pa.Array], np.ndarray]
"""Partition of each part, [P] int64, from its user_id [P] and its request_ts [P]."""


class Spill:
    """Takes deduplicated batches of any size and order, gives them back by partition.

    partition_of: of requests and, unless `rows_partition_of` is given, of their rows.
    rows_partition_of: partition of each of N rows, [N] int64, where rows go their own ways (a shuffle).
    directory: where the files lie; None means the system's temporary directory.
    hold_bytes: of each of its two tables: one that has no more stays in memory.
    remember: requests, at most, whose later rows use what their first brought. For logs whose requests come again in
    many batches, as from a shuffled table: every value is hashed for it, and a request takes 40 bytes of memory.
    """

    def __init__(
        self,
        schema: EngagementSchema,
        partition_of: PartitionOf,
        *,
        rows_partition_of: Callable[[int], np.ndarray] | None = None,
        directory: str | Path | None = None,
        hold_bytes: int = 0,
        remember: int = 0,
    ) -> None:
        self.schema, self._wanted = schema, deduplicated_schema(schema)
        self._seen = SeenRequests(remember) if remember else None
        self._partition_of, self._rows_partition_of = partition_of, rows_partition_of
        self.request_columns = (schema[USER_ID], schema[REQUEST_ID], *schema.request_columns)
        self.row_names = frozenset(schema.names) - {column.name for column in self.request_columns}
        self.row_columns = tuple(column for column in schema.columns if column.name in self.row_names)
        self._requests = _SpillFile(_spill_schema(self.request_columns), directory, hold_bytes)
        self._rows = _SpillFile(_spill_schema(self.row_columns), directory, hold_bytes)
        self.num_rows = self.num_parts = self._small_bytes = 0
        self._small: list[pa.RecordBatch] = []

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._requests.close()
        self._rows.close()

    @property
    def num_bytes(self) -> int:
        """On disk, after `finish`."""
        return self._requests.num_bytes + self._rows.num_bytes

    def add(self, batch: pa.RecordBatch) -> None:
        """Take one batch.

        Raises ValueError if it is not a deduplicated batch of the schema, and here or at a later call where a
        request-level value differs inside a request.
        """
        if isinstance(batch, pa.RecordBatch) and batch.schema != self._wanted:
            batch = widened(batch, self.schema)
        check_deduplicated(batch, self.schema)
        self._small.append(batch.select(list(self.schema.names)))
        self._small_bytes += batch.nbytes
        self.num_rows += batch.num_rows
        if sum(one.num_rows for one in self._small) >= SMALL_ROWS or self._small_bytes >= SMALL_BYTES:
            self._take_small()

    def _take_small(self) -> None:
        small, self._small, self._small_bytes = self._small, [], 0
        together: list[pa.RecordBatch] = []
        for batch in small:
            if batch.nbytes >= SMALL_BYTES:  # copied by no one
                self._take(together)
                self._take([batch])
                together = []
            elif batch.num_rows:
                together.append(batch)
        self._take(together)

    def _take(self, batches: list[pa.RecordBatch]) -> None:
        if not batches:
            return
        batch = concat(batches)
        part_of_row, first_row = split_parts(batch)
        check_one_value_per_request(batch, self.request_columns, part_of_row, first_row)
        users = batch.column(USER_ID).to_numpy()[first_row]
        partition = self._partition_of(users, batch.column(REQUEST_TS).take(pa.array(first_row)))
        number, is_new = self._number_parts(batch, first_row)
        new_partition = partition[is_new]
        by_partition = np.argsort(new_partition, kind="stable")
        new_row, new_number = first_row[is_new][by_partition], number[is_new][by_partition]
        for start, end in self._pieces(batch, new_row):
            requests = self._request_rows(batch, new_row[start:end], new_number[start:end])
            self._requests.add(requests, new_partition[by_partition[start:end]])
        rows = [pa.array(number[part_of_row])]
        rows += [_spilled(batch.column(column.name), column) for column in self.row_columns]
        of_row = partition[part_of_row] if self._rows_partition_of is None else self._rows_partition_of(batch.num_rows)
        self._rows.add(pa.RecordBatch.from_arrays(rows, schema=self._rows.schema), of_row)
        self.num_parts += len(new_row)

    def adopt(self, partition: int, requests: Sequence[pa.RecordBatch], rows: Sequence[pa.RecordBatch]) -> None:
        """Take a partition of another spill, as that one keeps it: its parts follow those of before."""
        theirs, own = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for batch in requests:
            number, is_new = self._number_parts(batch, np.arange(batch.num_rows))
            theirs = np.append(theirs, batch.column(PART).to_numpy())  # rising, as parts are numbered in their arrival
            own = np.append(own, number)
            batch = batch.set_column(0, self._requests.schema[0], pa.array(number))
            if not is_new.all():
                batch = batch.filter(pa.array(is_new))
            self._requests.add(batch, np.full(batch.num_rows, partition))
            self.num_parts += batch.num_rows
        for batch in rows:
            part = pa.array(own[np.searchsorted(theirs, batch.column(PART).to_numpy())])
            self._rows.add(batch.set_column(0, self._rows.schema[0], part), np.full(batch.num_rows, partition))
            self.num_rows += batch.num_rows

    @property
    def request_schema(self) -> pa.Schema:
        """Of its requests."""
        return self._requests.schema

    @property
    def row_schema(self) -> pa.Schema:
        """Of its rows."""
        return self._rows.schema

    def finish(self) -> None:
        """No more batches; from now on the partitions can be read."""
        self._take_small()
        self._requests.finish()
        self._rows.finish()

    def partitions(self) -> list[int]:
        """Partitions that hold rows, in rising order."""
        return self._rows.partitions()

    def requests(self, partition: int) -> list[pa.RecordBatch]:
        """The parts of one partition in arrival order, memory-mapped."""
        return self._requests.read(partition)

    def rows(self, partition: int) -> pa.RecordBatch:
        """The rows of one partition in arrival order, in memory."""
        return pa.Table.from_batches(self._rows.read(partition)).combine_chunks().to_batches()[0]

    def row_batches(self, partition: int) -> list[pa.RecordBatch]:
        """The same, memory-mapped."""
        return self._rows.read(partition)

    def num_rows_of(self, partition: int) -> int:
        return sum(batch.num_rows for batch in self._rows.read(partition))

    def request_partitions(self) -> list[int]:
        """Partitions that hold requests, in rising order."""
        return self._requests.partitions()

    def keys(self, partition: int) -> tuple[np.ndarray, np.ndarray]:
        """user_id and request_id of one partition's parts, [P] int64 each, in arrival order."""
        batches = self.requests(partition)
        user, request = (np.concatenate([b.column(key).to_numpy() for b in batches]) for key in (USER_ID, REQUEST_ID))
        return user, request

    def release(self) -> None:
        """Give the memory of the pages read so far, and what Arrow no longer uses, back to the operating system."""
        self._requests.release()
        self._rows.release()
        pa.default_memory_pool().release_unused()

    def _number_parts(self, batch: pa.RecordBatch, first_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of each part, [P] int64, and where it is a new one, [P] bool, whose values must be kept."""
        if self._seen is None:
            return np.arange(self.num_parts, self.num_parts + len(first_row)), np.ones(len(first_row), bool)
        user, request = (batch.column(name).to_numpy()[first_row] for name in (USER_ID, REQUEST_ID))
        names = [column.name for column in self.schema.request_columns]
        hashes = (value_hashes(batch.column(name))[first_row] for name in names)
        content = row_hashes(names, hashes, len(first_row))
        number = self._seen.find(user, request, content)
        is_new = number < 0
        number[is_new] = np.arange(self.num_parts, self.num_parts + int(is_new.sum()))
        self._seen.add(user[is_new], request[is_new], content[is_new], number[is_new])
        return number, is_new

    def _pieces(self, batch: pa.RecordBatch, first_row: np.ndarray) -> list[tuple[int, int]]:
        """Ranges of parts whose blobs take at most FLUSH_BYTES: many parts may share one value of a dictionary."""
        part_bytes = np.zeros(len(first_row), np.int64)
        for column in self.request_columns:
            if column.is_blob:
                array = batch.column(column.name)
                part_bytes += blob_bytes(array.dictionary)[array.indices.to_numpy()[first_row]]
        return greedy_ranges((FLUSH_BYTES, part_bytes))

    def _request_rows(self, batch: pa.RecordBatch, first_row: np.ndarray, number: np.ndarray) -> pa.RecordBatch:
        at = pa.array(first_row)
        arrays: list[pa.Array] = [pa.array(number)]
        for column in self.request_columns:
            array = batch.column(column.name)
            if column.is_blob:
                array = array.dictionary.cast(pa.large_binary()).take(array.indices.take(at))
                check_blobs(array, column)
            else:
                array = _spilled(array.take(at), column)
            arrays.append(array)
        requests = pa.RecordBatch.from_arrays(arrays, schema=self._requests.schema)
        check_sequence_lengths(requests, self.schema.sequences)
        return requests


@dataclass(frozen=True)
class _Sorted:
    """A batch whose rows are in the order of their partitions. bounds: of each of K partitions, [K + 1]."""

    batch: pa.RecordBatch
    partitions: np.ndarray
    bounds: np.ndarray

    def of(self, partition: int) -> pa.RecordBatch | None:
        at = int(np.searchsorted(self.partitions, partition))
        if at == len(self.partitions) or self.partitions[at] != partition:
            return None
        return self.batch.slice(self.bounds[at], self.bounds[at + 1] - self.bounds[at])


class _SpillFile:
    """Record batches by partition in one anonymous Arrow file; in memory, if they are at most `hold_bytes`."""

    def __init__(self, schema: pa.Schema, directory: str | Path | None, hold_bytes: int) -> None:
        self.schema = schema
        self.num_bytes = 0
        self._hold_bytes = hold_bytes  # 0 once it is a file
        self._batches_of: dict[int, list[int]] = defaultdict(list)
        self._directory = directory or tempfile.gettempdir()
        # Buffered: an unbuffered file may take a part of what it is given, which Arrow would not notice.
        self._file = tempfile.TemporaryFile(prefix="reqdedup-spill-", dir=directory)  # noqa: SIM115
        self._writer: pa.ipc.RecordBatchFileWriter | None = pa.ipc.new_file(pa.PythonFile(self._file, "w"), schema)
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        self._map: mmap.mmap | None = None
        self._pending: list[_Sorted] = []
        self._pending_bytes = self._num_batches = 0

    def add(self, batch: pa.RecordBatch, partition: np.ndarray) -> None:
        """Take the rows of `batch`; partition: of each of them. Rows that come ordered by it are not copied for it."""
        starts = run_starts([partition])
        lengths, of_run = np.diff(np.append(starts, len(partition))), partition[starts]
        if np.any(of_run[1:] < of_run[:-1]):  # runs are sorted in place of rows: those of a request are neighbours
            by_partition = np.argsort(of_run, kind="stable")
            rows = ranges(starts[by_partition], lengths[by_partition])
            batch = pc.take(batch, pa.array(rows), boundscheck=False)
            of_run, lengths = of_run[by_partition], lengths[by_partition]
        first = run_starts([of_run])
        self._pending.append(_Sorted(batch, of_run[first], offsets_of(lengths)[np.append(first, len(of_run))]))
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= (self._hold_bytes or FLUSH_BYTES):
            self._flush()
            self._hold_bytes = 0

    def finish(self) -> None:
        if self._hold_bytes:
            return
        self._flush()
        assert self._writer is not None
        with self._naming_the_disk():
            self._writer.close()
            self._file.flush()
        self._writer = None
        self.num_bytes = self._file.tell()
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))

    def partitions(self) -> list[int]:
        return self._pending_partitions() if self._hold_bytes else sorted(self._batches_of)

    def read(self, partition: int) -> list[pa.RecordBatch]:
        if self._hold_bytes:
            return self._pending_of(partition)
        if self._reader is None:
            raise ValueError("spill: finish() required before reading")
        return [self._reader.get_batch(index) for index in self._batches_of.get(partition, [])]

    def release(self) -> None:
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the file, which has no name: its space is free once the last array read from it is gone."""
        self._reader = self._map = self._writer = None
        self._pending.clear()
        with contextlib.suppress(OSError):  # of a full disk, where the last bytes do not go out
            self._file.close()

    @contextlib.contextmanager
    def _naming_the_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._directory}: space for the arriving log required, found no more after "
                f"{self._file.tell() / 2**20:,.0f} MiB ({os.strerror(error.errno) if error.errno else error}); free "
                "some, or give a larger folder (spill_dir, or TMPDIR). Nothing was written to the table",
            ) from error

    def _flush(self) -> None:
        assert self._writer is not None
        for partition in self._pending_partitions():
            pieces = self._pending_of(partition)
            self._batches_of[partition].append(self._num_batches)
            with self._naming_the_disk():
                self._writer.write_batch(pa.concat_batches(pieces) if len(pieces) > 1 else pieces[0])
            self._num_batches += 1
        self._pending.clear()
        self._pending_bytes = 0
        pa.default_memory_pool().release_unused()  # else the allocator's leftovers grow with the log

    def _pending_partitions(self) -> list[int]:
        return sorted({partition for one in self._pending for partition in one.partitions.tolist()})

    def _pending_of(self, partition: int) -> list[pa.RecordBatch]:
        return [found for one in self._pending if (found := one.of(partition)) is not None]


def _spill_schema(columns: Sequence[Column]) -> pa.Schema:
    fields = [pa.field(column.name, _spilled_type(column)) for column in columns]
    return pa.schema([pa.field(PART, pa.int64()), *fields])


def _spilled_type(column: Column) -> pa.DataType:
    """With 64-bit offsets, since a partition may hold any number of bytes."""
    if column.is_blob:
        return pa.large_binary()
    return large_type(element_type(column))


def _spilled(array: pa.Array, column: Column) -> pa.Array:
    kind = _spilled_type(column)
    return array if array.type == kind else array.cast(kind)
