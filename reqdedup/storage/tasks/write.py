"""Writing a table from whatever has its rows, on any engine.

a stream of batches, InOrder            this process
a source with row groups (TableSource)  maps and reduces (`shuffle`); the SHUFFLED layout: this process
a log (`SplitSource`)                   the same, if it is given an engine; else this process
a join, a sample, in fitting buckets    a task per bucket (`buckets`)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.distributed import SHUFFLE_PAYS_FROM, Engine, engine_for
from reqdedup.distributed.engine import named_engine
from reqdedup.storage.iceberg.changes import check_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.layout import Layout, table_layout, table_schema
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.tasks.buckets import BucketSource, commit_buckets, fits
from reqdedup.storage.tasks.parts import SplitSource, row_groups_of
from reqdedup.storage.tasks.shuffle import shuffle
from reqdedup.storage.write.writer import (
    WriteProgress,
    WriteReport,
    check_options,
    commit_rows,
    set_properties,
)

Rows = Iterable[pa.RecordBatch] | FileSource | BucketSource | SplitSource


def write(
    table: Table,
    batches: Rows,
    layout: Layout | None = None,
    *,
    mode: Literal["replace", "append"] = "replace",
    progress: Callable[[WriteProgress], None] | None = None,
    seed: int = 0,
    spill_dir: str | Path | None = None,
    properties: Mapping[str, str] | None = None,
    engine: str | Engine | None = None,
) -> WriteReport:
    """Write deduplicated batches into `table` in one commit; what was written.

    batches: of the table's schema, any size and order; a request may be split over them. Wrapped in `InOrder`, they are
        not spilled. Or what several processes can read: a source with row groups (`TableSource`), a join, a sample, a
        log.
    layout: the table's own if None; must be it if given (`replace_table` changes it).
    mode: "replace", the table then holds exactly these rows, or "append".
    progress: called while it runs.  seed: of the SHUFFLED order.  spill_dir: for the temporary files.
    properties: of the table, set in the same commit: what its rows were made from.
    engine: where it is read and written: "inline", "processes:N"; see `reqdedup.distributed`. A stream of batches, and
        the SHUFFLED layout, are written by this process alone.
    Raises ValueError for wrong batches and options, ConflictError if another writer was faster; the table then is as it
    was.
    """
    table.refresh()
    check_options(table, layout, mode)
    with StagedFiles(table, updates=set_properties(properties)) as files:
        return commit_source(
            files,
            batches,
            replace=mode == "replace",
            progress=progress,
            seed=seed,
            spill_dir=spill_dir,
            engine=engine,
        )


def commit_source(
    files: StagedFiles,
    source: Rows,
    *,
    replace: bool,
    progress: Callable[[WriteProgress], None] | None,
    seed: int,
    spill_dir: str | Path | None,
    engine: str | Engine | None,
) -> WriteReport:
    """Write what `source` has as files of `files` and commit them; see `write`."""
    started, target = time.monotonic(), files.target
    check_spec(target)

    def report(phase: str, rows_done: int, rows_total: int | None) -> None:
        if progress is not None:
            progress(WriteProgress(phase, rows_done, rows_total, time.monotonic() - started))

    spill_bytes = 0
    if isinstance(source, BucketSource) and fits(source, target):
        counts, snapshot_id = commit_buckets(
            files, source, replace=replace, report=report, spill_dir=spill_dir, engine=engine
        )
    elif isinstance(source, FileSource | SplitSource) and not (chosen := _engine_of(files, source, engine)).is_here:
        schema = table_schema(target)
        parts = row_groups_of(source, schema) if isinstance(source, FileSource) else source
        done = shuffle(files, parts, schema, engine=chosen, report=report, renew=replace, spill_dir=spill_dir)
        counts, spill_bytes = done.counts, done.exchanged_bytes
        report("commit", counts.rows, counts.rows)
        snapshot_id = files.commit(replace=replace)
    else:
        if not isinstance(source, FileSource | SplitSource):
            _refuse(files, source, engine)
        batches = source.batches() if isinstance(source, FileSource | BucketSource) else source
        counts, spill_bytes, snapshot_id = commit_rows(
            files, batches, replace=replace, report=report, seed=seed, spill_dir=spill_dir
        )
    data_files = files.data_files
    return WriteReport(
        rows=counts.rows,
        requests=counts.requests,
        users=counts.users,
        files=len(data_files),
        row_groups=sum(len(file.split_offsets or []) for file in data_files),
        bytes=sum(file.file_size_in_bytes for file in data_files),
        spill_bytes=spill_bytes,
        seconds=time.monotonic() - started,
        snapshot_id=snapshot_id,
    )


def _engine_of(files: StagedFiles, source: FileSource | SplitSource, engine: str | Engine | None) -> Engine:
    """For rows in parts; the random order of the SHUFFLED layout goes over all of them."""
    if table_layout(files.target) is Layout.SHUFFLED:
        _refuse(files, source, engine)
        return engine_for("inline", None, num_tasks=1)
    if isinstance(source, FileSource):
        num_tasks = len(row_groups_of(source, source.schema).parts())
        num_bytes = getattr(source, "num_bytes", 0)
    else:
        num_tasks, num_bytes = source.split_size()
    work: Any = (PortableTable(files.table), source)
    return engine_for(engine, work, num_tasks=num_tasks, num_bytes=num_bytes, pays_from=SHUFFLE_PAYS_FROM)


def _refuse(files: StagedFiles, source: Rows, engine: str | Engine | None) -> None:
    """Raise ValueError if an engine was asked for by name that cannot have these rows."""
    asked = named_engine(engine) if isinstance(engine, str) else engine
    if asked is not None and not asked.is_here:
        target = files.target
        raise ValueError(
            f"{'.'.join(target.name())}: what several processes can read (a TableSource, a log; a join or a sample "
            f"whose bucket count and the table's divide each other), and another layout than SHUFFLED, required "
            f"by engine {asked.name}, found a {type(source).__name__} and {table_layout(target).name}; leave it out"
        )
