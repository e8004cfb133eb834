"""Writing one column of the sample as some Parquet writer would, with any settings: for the causes
and the cheapest step.

Parquet encodes and compresses every column alone, so memory is one column of one row group, and a column that no
setting can help is not written again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.audit.values import SampleColumn
from reqdedup.storage.iceberg.settings import LARGE_PAGE_BYTES, ZSTD_LEVEL

LEVELLED_CODECS = ("zstd", "gzip", "brotli")


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


PYICEBERG_DEFAULTS = WriterSettings(dictionary_bytes=2 * 2**20, batch_values=20_000, statistics=True)
"""What pyiceberg 0.12 writes without any property: zstd 1, 1 MB pages, dictionaries up to 2 MB."""

LARGE_PAGES = WriterSettings(level=ZSTD_LEVEL, page_bytes=LARGE_PAGE_BYTES, dictionary=False, page_checksum=True)
"""Plain lists of Layout.SORTED_LARGE_PAGES."""

OUR_SCALARS = WriterSettings(level=ZSTD_LEVEL, dictionary_bytes=2**31 - 1, page_checksum=True, statistics=True)
"""Scalars of both; floats that differ per row go without a dictionary."""


def without_dictionary(settings: WriterSettings) -> WriterSettings:
    return replace(settings, dictionary=False)


def written_bytes(path: Path, column: SampleColumn, groups: Iterable[np.ndarray], settings: WriterSettings) -> int:
    """Compressed bytes of the column written plain, one row group per entry of `groups`: rows of
    the sample, in order."""
    schema = pa.schema([pa.field("x", column.arrow_type)])
    with pq.ParquetWriter(path, schema, **settings.keywords()) as writer:
        for rows in groups:
            chunks = pa.chunked_array(list(column.chunks(rows)), column.arrow_type)
            writer.write_table(pa.table([chunks], schema=schema), max(len(rows), 1))
    footer = pq.read_metadata(path)
    path.unlink()
    return sum(footer.row_group(index).column(0).total_compressed_size for index in range(footer.num_row_groups))
