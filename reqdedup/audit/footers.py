"""What the footers and page headers of a table say: bytes, codec, encodings, page and row-group sizes, per leaf column.

Footers are read whole, every row group of every file: today's bytes are exact. Page headers are read from some column
chunks spread over the table, since each costs a seek.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq

from reqdedup.audit.pages import DICTIONARY_ENCODINGS, Page, chunk_range, read_pages
from reqdedup.storage.foreign.files import DataFile, TableFiles, reading
from reqdedup.storage.foreign.leaves import Leaf, leaves_of
from reqdedup.storage.iceberg.small_files import fetched

PAGE_FILES = 8
PAGES_PER_CHUNK = 64


@dataclass
class ColumnFacts:
    """One leaf column over the whole table.

    compressed_bytes, uncompressed_bytes: of its column chunks, dictionary pages and page headers included.
    num_values: leaf slots; a list has one per element, and one where it is empty or null.
    page_bytes, rows_per_page: medians of full data pages, None if no page header could be read.
    dictionary_share: part of the values in those pages that are dictionary codes.  dictionary_bytes: the largest
    dictionary page.  path: in the Parquet schema.
    """

    leaf: Leaf
    path: str = ""
    compressed_bytes: int = 0
    uncompressed_bytes: int = 0
    num_values: int = 0
    codec_bytes: Counter[str] = field(default_factory=Counter)
    encodings: set[str] = field(default_factory=set)
    num_rows: int = 0
    page_bytes: int | None = None
    rows_per_page: float | None = None
    dictionary_share: float | None = None
    dictionary_bytes: int = 0
    pages: list[Page] = field(default_factory=list)

    @property
    def codec(self) -> str:
        """The codec of most of its bytes, lower case; `none` where it is uncompressed."""
        return self.codec_bytes.most_common(1)[0][0] if self.codec_bytes else "none"

    @property
    def codecs(self) -> list[str]:
        return sorted(self.codec_bytes)

    @property
    def has_dictionary(self) -> bool:
        return any(name in DICTIONARY_ENCODINGS for name in self.encodings)


@dataclass(frozen=True)
class RowGroupRef:
    """One row group: which file of the table, which of its row groups."""

    file: int
    index: int
    num_rows: int
    compressed_bytes: int


@dataclass(frozen=True)
class TableFacts:
    """columns: by leaf name, in table order. file_bytes: sizes of the files, footers and indexes included."""

    columns: dict[str, ColumnFacts]
    row_groups: tuple[RowGroupRef, ...]
    num_rows: int
    file_bytes: int
    num_files: int
    created_by: tuple[str, ...]

    @property
    def compressed_bytes(self) -> int:
        return sum(column.compressed_bytes for column in self.columns.values())

    @property
    def uncompressed_bytes(self) -> int:
        return sum(column.uncompressed_bytes for column in self.columns.values())

    @property
    def median_row_group_rows(self) -> int:
        return int(np.median([group.num_rows for group in self.row_groups])) if self.row_groups else 0

    @property
    def median_row_group_bytes(self) -> int:
        return int(np.median([group.compressed_bytes for group in self.row_groups])) if self.row_groups else 0


def read_facts(table: TableFiles, progress: Callable[[int, int], None] = lambda done, total: None) -> TableFacts:
    """Read every footer, and the page headers of some column chunks. Raises ValueError naming an unreadable file."""
    found = {name for file in table.files for name in (*file.leaf_in_file, *file.constants)}
    columns = {leaf.name: ColumnFacts(leaf) for leaf in table.leaves if leaf.name in found}
    groups: list[RowGroupRef] = []
    writers: Counter[str] = Counter()
    with_pages = set(np.linspace(0, len(table.files) - 1, min(PAGE_FILES, len(table.files))).astype(int).tolist())
    for number, file in enumerate(table.files):
        with reading(file.path), contextlib.closing(fetched(file.open_bytes(), file.size_bytes)) as stream:
            footer = pq.ParquetFile(stream).metadata
            names = _leaf_names(file, footer)
            writers[footer.created_by] += 1
            for index in range(footer.num_row_groups):
                group = footer.row_group(index)
                compressed = 0
                for position, name in enumerate(names):
                    if name not in columns:
                        continue
                    _count(columns[name], group.column(position), group.num_rows)
                    compressed += group.column(position).total_compressed_size
                if group.num_rows:
                    groups.append(RowGroupRef(number, index, group.num_rows, compressed))
            if number in with_pages and footer.num_row_groups:
                middle = footer.row_group(footer.num_row_groups // 2)
                for position, name in enumerate(names):
                    if name in columns:
                        _add_pages(columns[name], stream, middle, position)
        progress(number + 1, len(table.files))
    for column in columns.values():
        _summarise_pages(column)
    return TableFacts(
        columns,
        tuple(groups),
        sum(group.num_rows for group in groups),
        sum(file.size_bytes for file in table.files),
        len(table.files),
        tuple(name for name, _ in writers.most_common()),
    )


def _leaf_names(file: DataFile, footer: pq.FileMetaData) -> list[str]:
    """The table's leaf name of each column of the footer; the file's own where the table has no such column."""
    name_in_table = {leaf.name: name for name, leaf in file.leaf_in_file.items()}
    leaves = leaves_of(file.schema)
    if len(leaves) != footer.num_columns:
        raise ValueError(
            f"{file.path}: {len(leaves)} leaf columns expected from its schema, found {footer.num_columns} in its "
            "footer; this audit cannot tell them apart: leave the file out and report its schema"
        )
    return [name_in_table.get(leaf.name, f"\0{leaf.name}") for leaf in leaves]


def _count(facts: ColumnFacts, chunk: pq.ColumnChunkMetaData, num_rows: int) -> None:
    codec = chunk.compression.lower()
    facts.path = facts.path or chunk.path_in_schema
    facts.compressed_bytes += chunk.total_compressed_size
    facts.uncompressed_bytes += chunk.total_uncompressed_size
    facts.num_values += chunk.num_values
    facts.num_rows += num_rows
    facts.codec_bytes["none" if codec == "uncompressed" else codec] += chunk.total_uncompressed_size
    facts.encodings |= set(chunk.encodings)


def _add_pages(facts: ColumnFacts, stream: object, group: pq.RowGroupMetaData, position: int) -> None:
    chunk = group.column(position)
    try:
        pages = read_pages(stream, *chunk_range(chunk), limit=PAGES_PER_CHUNK)  # type: ignore[arg-type]
    except ValueError:
        return  # an encrypted column in a plaintext footer: page facts stay unknown, reading it will name the file
    data = [page for page in pages if not page.is_dictionary]
    dictionaries = [page.uncompressed_bytes for page in pages if page.is_dictionary]
    facts.dictionary_bytes = max(facts.dictionary_bytes, *dictionaries, 0)
    # The last page of a chunk is a rest; it counts only where it is all there is.
    facts.pages += data[:-1] if len(data) > 1 and len(pages) < PAGES_PER_CHUNK else data


def _summarise_pages(facts: ColumnFacts) -> None:
    if not facts.pages:
        return
    sizes = np.array([page.uncompressed_bytes for page in facts.pages])
    values = np.array([page.num_values for page in facts.pages])
    values_per_row = facts.num_values / max(facts.num_rows, 1)
    facts.page_bytes = int(np.median(sizes))
    facts.rows_per_page = float(np.median(values) / max(values_per_row, 1e-9))
    encoded = np.array([page.encoding in DICTIONARY_ENCODINGS for page in facts.pages])
    facts.dictionary_share = float(values[encoded].sum() / max(values.sum(), 1))
    facts.pages = []
