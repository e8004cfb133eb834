"""The store-once limit: the bytes of a column when every distinct value is stored once, measured by storing it so.

    sequence or vector     every distinct value of the whole table once, plain, in pages of up to 128 MB
    scalar of the request  one value per request, as in a table of one row per request
    scalar of the row      one value per row, as it is: nothing repeats by construction

all in (user_id, request_id, item_id) order, by Parquet's own writer at a given codec and level, in long row groups;
scalars in a dictionary or plain, whichever is smaller. What a layout adds on top (which value a row has, copies in
several row groups or pages) is its distance to the limit. Other encodings may go below it: of single elements in plain
lists, and those of a table whose property says `compact`. What a table really takes is then its limit: see
`compression_report`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.arrays.keys import run_starts
from reqdedup.dedup.encoding import element_type
from reqdedup.schema import ITEM_ID, REQUEST_ID, USER_ID, Column, EngagementSchema, Level
from reqdedup.storage.iceberg.settings import LARGE_PAGE_BYTES

MIN_GROUP_VALUES, MAX_GROUP_VALUES, GROUP_VALUES_TOGETHER = 16_384, 2**20, 2**23
"""Of a scalar's row groups, at least and at most, and of all columns together, which bounds memory."""

ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True, order=True)
class Codec:
    """A Parquet codec in lower case and its level; None is the codec's default."""

    name: str
    level: int | None = None


def store_once_bytes(
    batches: Iterable[pa.RecordBatch], schema: EngagementSchema, codecs: Sequence[Codec]
) -> dict[Codec, dict[str, int]]:
    """Compressed bytes of each column at each codec when every value is stored once.

    batches: deduplicated, rows of a request contiguous, in the order that is to be measured.
    """
    together = GROUP_VALUES_TOGETHER // max(len(schema.columns), 1)
    group_values = min(max(together, MIN_GROUP_VALUES), MAX_GROUP_VALUES)
    columns = {column.name: _OnceColumn(column, codecs, group_values) for column in schema.columns}
    last: tuple[int, int] | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        key = [batch.column(name).to_numpy() for name in (USER_ID, REQUEST_ID)]
        starts = run_starts(key)
        if last == (int(key[0][0]), int(key[1][0])):  # the request goes on: its values are stored already
            starts = starts[1:]
        last = (int(key[0][-1]), int(key[1][-1]))
        for name, once in columns.items():
            array = batch.column(name)
            if once.per_row:
                once.add(array)
            elif len(starts):
                once.add(array.take(pa.array(starts)))
    return {codec: {name: once.close(codec) for name, once in columns.items()} for codec in codecs}


@dataclass
class _OnceColumn:
    """Collects one column's values, drops blobs seen before, and writes row groups that only count their bytes."""

    column: Column
    codecs: Sequence[Codec]
    group_values: int
    pending: list[pa.Array] = field(default_factory=list)
    pending_bytes: int = 0
    pending_values: int = 0
    seen: set[bytes] = field(default_factory=set)
    writers: dict[Codec, list[pq.ParquetWriter]] = field(default_factory=dict)

    @property
    def per_row(self) -> bool:
        return self.column.name == ITEM_ID or self.column.level in (Level.ITEM, Level.LABEL)

    def __post_init__(self) -> None:
        self.type = pa.binary() if self.column.is_blob else element_type(self.column)
        may_repeat = not self.column.is_blob and not (self.per_row and pa.types.is_floating(self.type))
        schema = pa.schema([pa.field(self.column.name, self.type, nullable=self.column.nullable)])
        for codec in self.codecs:
            self.writers[codec] = [
                pq.ParquetWriter(
                    pa.PythonFile(_Counted(), "w"),
                    schema,
                    compression=codec.name,
                    compression_level=codec.level,
                    use_dictionary=has_dictionary,
                    dictionary_pagesize_limit=2**31 - 1,
                    data_page_size=LARGE_PAGE_BYTES if self.column.is_blob else None,
                    write_statistics=False,
                    store_schema=False,
                )
                for has_dictionary in ((False, True) if may_repeat else (False,))
            ]

    def add(self, array: pa.Array) -> None:
        if self.column.is_blob:
            array = self._unseen(array)
        self.pending.append(array)
        self.pending_bytes += array.nbytes
        self.pending_values += len(array)
        is_long = not self.column.is_blob and self.pending_values >= self.group_values
        if is_long or self.pending_bytes >= ROW_GROUP_BYTES:
            self._write()

    def close(self, codec: Codec) -> int:
        """Compressed bytes of the column chunks at this codec, in the smaller encoding."""
        self._write()
        sizes = []
        for writer in self.writers[codec]:
            writer.close()
            footer = writer.writer.metadata
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            leaves = [group.column(leaf) for group in groups for leaf in range(group.num_columns)]
            sizes.append(sum(leaf.total_compressed_size for leaf in leaves))
        return min(sizes)

    def _unseen(self, array: pa.DictionaryArray) -> pa.BinaryArray:
        codes = array.indices.to_numpy()
        first = np.sort(np.unique(codes, return_index=True)[1])
        new = []
        for code in codes[first].tolist():
            digest = hashlib.blake2b(array.dictionary[code].as_buffer(), digest_size=12).digest()
            if digest not in self.seen:
                self.seen.add(digest)
                new.append(code)
        return array.dictionary.take(pa.array(new, pa.int64()))

    def _write(self) -> None:
        if self.pending_values == 0:
            return
        table = pa.table([pa.chunked_array(self.pending, self.type)], names=[self.column.name])
        schema = pa.schema([pa.field(self.column.name, self.type, nullable=self.column.nullable)])
        for writer in (one for writers in self.writers.values() for one in writers):
            writer.write_table(table.cast(schema), row_group_size=max(len(table), 1))
        self.pending, self.pending_bytes, self.pending_values = [], 0, 0


class _Counted(io.RawIOBase):
    """A file that keeps nothing but its length."""

    def __init__(self) -> None:
        self._length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        self._length += size
        return size

    def tell(self) -> int:
        return self._length
