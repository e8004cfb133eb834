"""The rows of a conversion as new files of a table, compared with the source and committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.convert.candidates import CandidateSource
from reqdedup.convert.repeats import repeated_rows
from reqdedup.convert.rows import Converter, Counted
from reqdedup.convert.tasks import ConvertedParts, check_independently
from reqdedup.dedup.checksum import ContentChecksum, content_checksum
from reqdedup.distributed import Engine
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.layout import table_layout
from reqdedup.storage.iceberg.same_requests import OPERATION
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.tasks.shuffle import shuffle
from reqdedup.storage.write.writer import set_properties, write_rows

REMEMBERED_REQUESTS = 20_000_000
"""Of a shuffled source; 0.8 GB where it has as many. Further ones take their place on disk once per
piece of the source."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WrittenRows:
    """What was written. num_repeated: rows of an append that were there already with equal values."""

    data_files: list[DataFile]
    num_requests: int
    num_repeated: int


def write_converted(
    table: Table,
    converter: Converter,
    num_rows: int,
    report: Progress,
    *,
    engine: Engine,
    replace: bool,
    seed: int,
    spill_dir: str | Path | None,
    properties: Mapping[str, str] | None,
) -> WrittenRows:
    """All rows of the source as new files of the table, compared with the source and committed.

    replace: the table must hold them alone; else another's rows may have come meanwhile.  properties: of the table.
    """
    with StagedFiles(table, updates=set_properties(properties)) as files:
        if engine.is_here:
            num_requests, checksum = _by_this_process(files, converter, num_rows, report, seed, spill_dir)
        else:
            num_requests, checksum = _by_tasks(files, converter, num_rows, report, engine, spill_dir)
        if checksum != converter.checksum.so_far:
            raise IntegrityError(
                f"{'.'.join(table.name())}: the rows of {converter.source.name} required "
                f"({converter.checksum.so_far}, {converter.compared_with}), found {checksum}; nothing was committed. "
                "This is a defect of the conversion: report it"
            )
        repeated = 0 if replace else repeated_rows(table, files.data_files, converter.schema)
        files.commit(replace=replace, properties={OPERATION: "convert"})
        return WrittenRows(files.data_files, num_requests, repeated)


def _by_this_process(
    files: StagedFiles, converter: Converter, num_rows: int, report: Progress, seed: int, spill_dir: str | Path | None
) -> tuple[int, ContentChecksum]:
    """Number of requests, and the checksum of all files."""
    batches = _reporting(converter.batches(), num_rows, report)
    written = write_rows(files, batches, converter.schema, seed=seed, spill_dir=spill_dir, remember=REMEMBERED_REQUESTS)
    if isinstance(converter.source, CandidateSource):  # how many there are, nothing says before
        num_rows = converter.num_rows
    is_bucketed = table_layout(files.target).is_bucketed
    files.verify(num_rows=num_rows, num_requests=written.requests if is_bucketed else None)
    report("verify", 0, written.rows)
    for done in converter.read_independently():
        report("verify", done, written.rows)
    paths = [file.file_path for file in files.data_files]
    source = FileSource(paths, converter.schema, io=files.table.io, merge_pieces=False)
    return written.requests, content_checksum(source)


def _by_tasks(
    files: StagedFiles,
    converter: Converter,
    num_rows: int,
    report: Progress,
    engine: Engine,
    spill_dir: str | Path | None,
) -> tuple[int, ContentChecksum]:
    """The same, each part and bucket by a task, which reads its files back itself."""
    converter.check_history_times()
    num_empty = 0

    def take(number: int, notes: list[Counted]) -> None:
        nonlocal num_empty
        converter.absorb(notes[0])
        num_empty += notes[0].num_empty

    done = shuffle(
        files,
        ConvertedParts(converter=converter.fresh()),
        converter.schema,
        engine=engine,
        report=lambda phase, done, total: report("rows", done, num_rows) if phase == "spill" else None,
        take=take,
        spill_dir=spill_dir,
        remember=REMEMBERED_REQUESTS,
    )
    if isinstance(converter.source, CandidateSource):
        converter.source.num_empty = num_empty
    report("verify", 0, done.counts.rows)
    check_independently(engine, converter, report)
    return done.counts.requests, done.checksum


def _reporting(batches: Iterator[pa.RecordBatch], total: int, report: Progress) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        report("rows", done, total)
