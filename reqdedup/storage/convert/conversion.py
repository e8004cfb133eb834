"""A table that a team already has, rewritten into a layout and verified row for row.

    source -> levels (a sample) -> pieces -> deduplicated batches -> the writer -> files -> checksum of both sides -> commit

One pass over the source after the sample. Memory is a piece of the source and what a write takes; the disk holds the
deduplicated rows, also of a shuffled source, whose requests are recognised when they come again. The source is only read.
Nothing is visible before both checksums agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table

from reqdedup.schema import Level
from reqdedup.storage.commit import StagedFiles
from reqdedup.storage.content import ContentChecksum, content_checksum
from reqdedup.storage.convert.levels import find_levels
from reqdedup.storage.convert.mapping import ColumnMapping, check_mapping, plan_columns
from reqdedup.storage.convert.rows import Converter
from reqdedup.storage.convert.source import RowSource
from reqdedup.storage.layout import LAYOUT_PROPERTY, Layout, create_table
from reqdedup.storage.maintenance.bucket_count import choose_num_buckets
from reqdedup.storage.reader import FileSource
from reqdedup.storage.writer import write_rows

REMEMBERED_REQUESTS = 20_000_000
"""Of a shuffled source; 0.8 GB where it has as many. Further ones take their place on disk once per piece of the source."""


@dataclass(frozen=True)
class ConvertProgress:
    """How far a conversion is. phase: keys, sample, rows or verify; done of total rows (of row groups in sample)."""

    phase: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.phase}: {self.done:,} of {self.total:,}"


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion did.

    columns: target name -> (source names, level).  rows, requests, files, bytes: of the new table; source_bytes: of the old.
    checksum: of both.  notes: what a reader of the new table should know.
    """

    table: str
    layout: Layout
    num_buckets: int
    columns: Mapping[str, tuple[str, Level]]
    rows: int
    requests: int
    files: int
    bytes: int
    source_bytes: int
    checksum: ContentChecksum
    notes: tuple[str, ...]
    seconds: float


def convert_table(
    source: Table | str | Path | Sequence[str | Path],
    catalog: Catalog,
    identifier: str,
    mapping: ColumnMapping,
    *,
    layout: Layout = Layout.BY_REQUEST,
    num_buckets: int | None = None,
    location: str | None = None,
    seed: int = 0,
    progress: Callable[[ConvertProgress], None] | None = None,
    spill_dir: str | Path | None = None,
) -> ConvertReport:
    """Make the table `identifier` of `layout` from an Iceberg table of any catalog, or from Parquet files.

    source: a pyiceberg Table, a folder, a file, or several files.  num_buckets: by default what `choose_num_buckets` says.
    location: of the new table.  seed: of a SHUFFLED one.  spill_dir: for temporary files, which take the deduplicated rows.
    Raises ValueError for columns that are missing, of a type without a place, or of another level than thought (with the
    request that shows it), for nulls in keys, and where the new table is there already. Then there is no new table.
    """
    started = time.monotonic()
    rows = RowSource(source)
    check_mapping(rows, mapping)
    _check_new(catalog, identifier)

    def report(phase: str, done: int, total: int) -> None:
        if progress is not None:
            progress(ConvertProgress(phase, done, total))

    found = find_levels(rows, mapping, progress=report, temp_dir=spill_dir)
    columns = plan_columns(rows, mapping, found.levels, found.widths)
    converter = Converter(rows, columns, time_unit=mapping.time_unit)
    num_rows = rows.num_rows
    if num_buckets is None:
        repeats = max(num_rows / max(found.num_requests, 1), 1.0) if layout is not Layout.SHUFFLED else 1.0
        num_buckets = choose_num_buckets(stored_bytes=round(rows.num_bytes / repeats), rows=num_rows).num_buckets
    table = create_table(catalog, identifier, converter.schema, layout, num_buckets=num_buckets, location=location)
    try:
        with StagedFiles(table) as files:
            batches = _reporting(converter.batches(), num_rows, report)
            written, num_requests = write_rows(
                files, batches, converter.schema, seed=seed, spill_dir=spill_dir, remember=REMEMBERED_REQUESTS
            )
            files.verify(num_rows=num_rows, num_requests=num_requests if layout.is_bucketed else None)
            report("verify", 0, written)
            paths = [file.file_path for file in files.data_files]
            checksum = content_checksum(FileSource(paths, converter.schema, io=table.io, merge_pieces=False))
            if checksum != converter.checksum.so_far:
                raise RuntimeError(
                    f"{identifier}: the rows of {rows.name} required ({converter.checksum.so_far}), found {checksum}; nothing was "
                    "committed. This is a defect of the conversion: report it"
                )
            files.commit(replace=False, properties={"reqdedup.operation": "convert"})
            data_files = files.data_files
    except BaseException:
        catalog.purge_table(identifier)
        raise
    notes = [*rows.notes, *found.notes]
    if rows.skipped:
        notes.append(f"left out, nested too deep: {', '.join(rows.skipped)}")
    if converter.null_lists:
        notes.append(f"{converter.null_lists:,} null lists became empty ones, since a sequence cannot be null")
    return ConvertReport(
        table=identifier,
        layout=layout,
        num_buckets=num_buckets if layout.is_bucketed else 0,
        columns={target.column.name: (", ".join(target.sources), target.column.level) for target in columns},
        rows=num_rows,
        requests=num_requests,
        files=len(data_files),
        bytes=sum(file.file_size_in_bytes for file in data_files),
        source_bytes=rows.num_bytes,
        checksum=checksum,
        notes=tuple(notes),
        seconds=time.monotonic() - started,
    )


def _check_new(catalog: Catalog, identifier: str) -> None:
    """Raise ValueError where the table is there already; what a killed conversion left, which has no rows, goes."""
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        return
    if LAYOUT_PROPERTY not in table.properties or table.metadata.snapshots:
        raise ValueError(f"{identifier}: a new table required, found one; choose another name, or drop it first")
    catalog.purge_table(identifier)


def _reporting(
    batches: Iterator[pa.RecordBatch], total: int, report: Callable[[str, int, int], None]
) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        report("rows", done, total)
