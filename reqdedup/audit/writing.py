"""Writing one column of the sample as a layout would, and whose bytes are whose.

Parquet encodes and compresses every column alone, so a layout is written column by column: memory is one column of one
row group, and a column that no setting can help is not written again. Compressed bytes are dealt to rows page by page,
so that each user's part of the total is known, and with it how far the estimate can be off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.audit.pages import Page, chunk_range, read_pages
from reqdedup.audit.values import SampleColumn
from reqdedup.storage.iceberg.layout import LARGE_PAGE_BYTES, ZSTD_LEVEL

LEVELLED_CODECS = ("zstd", "gzip", "brotli")

REPEAT_COST = 0.02
"""Of a value that repeats the one before it, against a new one: how a page's bytes are dealt to its rows. Totals do not
depend on it, only the spread over users."""


@dataclass(frozen=True)
class WriterSettings:
    """How one column is written.

    codec: as pyarrow names it, `none` for uncompressed; level: None is the codec's default.
    dictionary_bytes: where a dictionary of the column's values falls back to plain, None for pyarrow's default.
    batch_values: values between two looks at the page size, None for pyarrow's default.
    encoding: in place of a dictionary.  page_checksum, statistics: in page headers.
    """

    codec: str = "zstd"
    level: int | None = None
    page_bytes: int = 2**20
    dictionary: bool = True
    dictionary_bytes: int | None = None
    batch_values: int | None = None
    encoding: str | None = None
    page_checksum: bool = False
    statistics: bool = False

    def keywords(self) -> dict[str, object]:
        """Of `pq.ParquetWriter`."""
        keywords: dict[str, object] = {
            "compression": self.codec,
            "use_dictionary": self.dictionary and self.encoding is None,
            "data_page_size": self.page_bytes,
            "write_page_checksum": self.page_checksum,
            "write_statistics": self.statistics,
            "store_schema": False,
        }
        if self.level is not None and self.codec in LEVELLED_CODECS:
            keywords["compression_level"] = self.level
        if self.dictionary_bytes is not None:
            keywords["dictionary_pagesize_limit"] = self.dictionary_bytes
        if self.encoding is not None:
            keywords["column_encoding"] = self.encoding
        if self.batch_values is not None:
            keywords["write_batch_size"] = self.batch_values
        return keywords


MAX_DICTIONARY_BYTES = 128 * 2**20
"""Of one column's distinct values in a row group of blobs."""

PYICEBERG_DEFAULTS = WriterSettings(dictionary_bytes=2 * 2**20, batch_values=20_000, statistics=True)
"""What pyiceberg 0.12 writes without any property: zstd 1, 1 MB pages, dictionaries up to 2 MB."""

LARGE_PAGES = WriterSettings(level=ZSTD_LEVEL, page_bytes=LARGE_PAGE_BYTES, dictionary=False, page_checksum=True)
"""Plain lists of Layout.SORTED_LARGE_PAGES."""

BLOBS = WriterSettings(level=ZSTD_LEVEL, dictionary_bytes=2**31 - 1, page_checksum=True)
"""Whole sequences as dictionary values, Layout.BY_REQUEST."""

OUR_SCALARS = WriterSettings(level=ZSTD_LEVEL, dictionary_bytes=2**31 - 1, page_checksum=True, statistics=True)
"""Scalars of both; floats that differ per row go without a dictionary."""


def without_dictionary(settings: WriterSettings) -> WriterSettings:
    return replace(settings, dictionary=False)


def write_rows(path: Path, column: SampleColumn, groups: list[np.ndarray], settings: WriterSettings) -> np.ndarray:
    """Compressed bytes of each row when the column is written plain, one row group per entry of `groups`.

    groups: rows of the sample in the order of the layout.  Returns [sum of their lengths] float64.
    """
    schema = pa.schema([pa.field("x", column.arrow_type)])
    with pq.ParquetWriter(path, schema, **settings.keywords()) as writer:
        for rows in groups:
            chunks = pa.chunked_array(list(column.chunks(rows)), column.arrow_type)
            writer.write_table(pa.table([chunks], schema=schema), max(len(rows), 1))
    # Only in large pages does a value meet the same user's earlier one.
    new_share = column.new_share if column.is_stored and settings.page_bytes >= LARGE_PAGE_BYTES else None
    ids = [column.ids[rows] for rows in groups]
    return _bytes_of_rows(path, [column.slots[rows] for rows in groups], ids, None, new_share=new_share)


def write_blobs(path: Path, column: SampleColumn, groups: list[np.ndarray], settings: WriterSettings) -> np.ndarray:
    """The same with each distinct value once per row group, as one binary value, and rows pointing at it."""
    groups = [part for rows in groups for part in _split(rows, column)]
    schema = pa.schema([pa.field("x", pa.dictionary(pa.int32(), pa.binary()))])
    weights = []
    with pq.ParquetWriter(path, schema, **settings.keywords()) as writer:
        for rows in groups:
            ids = column.ids[rows]
            used, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
            order = np.argsort(first, kind="stable")
            rank = np.empty(len(used), np.int32)
            present = used[order] >= 0
            rank[order[present]] = np.arange(int(present.sum()), dtype=np.int32)
            values = column.values.take(pa.array(used[order][present])).cast(pa.binary())
            indices = pa.array(rank[inverse], mask=ids < 0)
            writer.write_table(
                pa.table([pa.DictionaryArray.from_arrays(indices, values)], schema=schema), max(len(rows), 1)
            )
            weight = np.zeros(len(rows))
            weight[first] = column.value_bytes[used] * column.new_share[used] + 4
            weights.append(weight)
    return _bytes_of_rows(path, [np.ones(len(rows), np.int64) for rows in groups], None, weights)


def _split(rows: np.ndarray, column: SampleColumn) -> list[np.ndarray]:
    """A row group whose distinct values pass MAX_DICTIONARY_BYTES in pieces that do not."""
    ids = column.ids[rows]
    new_bytes = np.zeros(len(rows), np.int64)
    first = np.unique(ids, return_index=True)[1]
    new_bytes[first] = column.value_bytes[ids[first]]
    piece = np.cumsum(new_bytes) // MAX_DICTIONARY_BYTES
    return np.split(rows, np.flatnonzero(np.diff(piece)) + 1)


def write_values(path: Path, column: SampleColumn, rows: np.ndarray, settings: WriterSettings) -> np.ndarray:
    """Compressed bytes of each of these rows' values, each as one binary value without any dictionary."""
    schema = pa.schema([pa.field("x", pa.large_binary())])
    with pq.ParquetWriter(path, schema, **without_dictionary(settings).keywords()) as writer:
        for start in range(0, max(len(rows), 1), GROUP_VALUES):
            ids = column.ids[rows[start : start + GROUP_VALUES]]
            values = column.values.take(pa.array(ids, mask=ids < 0))
            writer.write_table(pa.table([values], schema=schema), max(len(ids), 1))
    sizes = [
        (column.value_bytes * column.new_share)[column.ids[rows[start : start + GROUP_VALUES]]] + 4
        for start in range(0, max(len(rows), 1), GROUP_VALUES)
    ]
    return _bytes_of_rows(path, [np.ones(len(part), np.int64) for part in sizes], None, sizes, by_weight=True)


GROUP_VALUES = 2048
"""Values of a row group of `write_values`: bounds memory at 256 MB for sequences of 128 KB."""


def _bytes_of_rows(
    path: Path,
    slots: list[np.ndarray],
    ids: list[np.ndarray] | None,
    weights: list[np.ndarray] | None,
    *,
    new_share: np.ndarray | None = None,
    by_weight: bool = False,
) -> np.ndarray:
    """Deal the bytes of each page to the rows whose values it holds.

    slots: Parquet values of each row, per row group.  ids: which value each row has: a row that repeats the one before it
    in its page costs next to nothing; None where pages hold codes only.  new_share: of each value.  weights: how the bytes of a dictionary page are
    shared; like those of the data pages together where None.  by_weight: share data pages by them too.
    """
    footer = pq.read_metadata(path)
    parts = []
    with path.open("rb") as file:
        for index, row_slots in enumerate(slots):
            if not len(row_slots):
                continue
            pages = read_pages(file, *chunk_range(footer.row_group(index).column(0)))
            dictionary = float(sum(page.compressed_bytes for page in pages if page.is_dictionary))
            cost = row_slots.astype(np.float64)
            if ids is not None and new_share is not None:
                cost *= new_share[ids[index]]
            if ids is not None:
                cost[1:] *= np.where(ids[index][1:] == ids[index][:-1], REPEAT_COST, 1.0)
            row_bytes = _deal([page for page in pages if not page.is_dictionary], row_slots, cost)
            share = cost if weights is None else np.asarray(weights[index], np.float64)
            if by_weight:
                row_bytes, dictionary = np.zeros(len(row_slots)), float(sum(page.compressed_bytes for page in pages))
            parts.append(row_bytes + dictionary * share / max(share.sum(), 1e-9))
    path.unlink()
    return np.concatenate(parts) if parts else np.zeros(0)


def _deal(pages: list[Page], row_slots: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Bytes of each row: a page's bytes are shared by its rows as `cost` has it, a row over two pages pays in both."""
    page_ends = np.cumsum([0] + [page.num_values for page in pages])
    row_ends = np.concatenate([[0], np.cumsum(row_slots)])
    cost_ends = np.concatenate([[0], np.cumsum(cost)])
    # Cost counted up to any value, and with it to the ends of pages; then bytes counted up to any cost.
    cost_at_page = np.interp(page_ends, row_ends, cost_ends)
    byte_ends = np.cumsum([0] + [page.compressed_bytes for page in pages])
    return np.diff(np.interp(cost_ends, cost_at_page, byte_ends))
