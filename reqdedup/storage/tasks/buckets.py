"""A source that lies in buckets, written into a table without a shuffle: one task per bucket, one commit.

join, sample, ... of N buckets       bucket 0 -> task -> files of bucket 0         users of bucket b of N are in
table of N, or of a multiple         bucket 1 -> task -> files of bucket 1 ...     bucket b % M of M, if M divides N
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.dedup.checksum import RunningChecksum
from reqdedup.distributed import Engine, engine_for
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.layout import table_buckets, table_layout, table_schema
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.tasks.alike import BucketTask, adopt_all, is_decided
from reqdedup.storage.write.writer import (
    Counts,
    Report,
    write_in_order,
    write_rows,
)


@runtime_checkable
class BucketSource(Protocol):
    """Deduplicated rows that can be read bucket by bucket, in this process or another: a join, a sample.

    num_buckets: of the rows.  num_bytes: of the stored files that it reads, 0 if it does not know.
    """

    @property
    def schema(self) -> EngagementSchema: ...

    @property
    def num_buckets(self) -> int | None: ...

    @property
    def num_bytes(self) -> int: ...

    def in_order(self, num_units: int) -> bool:
        """Whether `of_unit` gives rows by their keys."""
        ...

    def of_unit(
        self, unit: int, num_units: int, notes: list[Any], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of every bucket b with b % num_units == unit; num_units divides num_buckets.

        notes: takes what the source has to say about them, once they are read.  columns: all by default.
        """
        ...

    def was_written(self, notes: list[Any]) -> None:
        """All of it was, with these notes."""
        ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class BucketWrite:
    """What the tasks of such a write share. updates, renew: see `run_alike`."""

    table: PortableTable
    source: BucketSource
    num_units: int
    in_order: bool
    updates: tuple[TableUpdate, ...] = ()
    spill_dir: str | Path | None = None
    renew: bool = False

    def run(self, task: BucketTask) -> Written:
        """Write the unit; its note: users, and what the source had to say."""
        table, running = self.table.table, RunningChecksum()
        notes: list[Any] = []
        with StagedFiles(table, updates=self.updates, write_id=task.write_id) as files:
            schema = table_schema(files.target)
            rows = running.through(self.source.of_unit(task.bucket, self.num_units, notes))
            if self.in_order:
                *_, done = [Counts(), *write_in_order(files, [(task.bucket, rows)], schema, renew=self.renew)]
            else:
                done = write_rows(files, rows, schema, spill_dir=self.spill_dir, renew=self.renew)
            return files.hand_over(running.so_far, num_requests=done.requests, note=(done.users, notes))


def commit_buckets(
    files: StagedFiles,
    source: BucketSource,
    *,
    replace: bool,
    report: Report,
    spill_dir: str | Path | None,
    engine: str | Engine | None,
) -> tuple[Counts, int | None]:
    """Write a source whose buckets fit the table's (`fits`) as files of `files`, which it then commits.

    What was written, and the snapshot. replace, spill_dir, engine: as of `write`.
    """
    buckets = table_buckets(files.target)
    assert buckets is not None
    assert source.num_buckets is not None
    num_units = min(buckets, source.num_buckets)
    work = BucketWrite(
        table=PortableTable(files.table),
        source=source,
        num_units=num_units,
        in_order=num_units == buckets and source.in_order(num_units),
        updates=files.updates,
        spill_dir=spill_dir,
        renew=replace,
    )
    num_bytes = source.num_bytes // num_units
    tasks = [BucketTask(bucket=unit, write_id=files.write_id, num_bytes=num_bytes) for unit in range(num_units)]
    chosen = engine_for(engine, work, num_tasks=num_units, num_bytes=source.num_bytes)
    decided = not replace and is_decided(files.table, table_schema(files.target), files.updates)

    def progress(done: int) -> None:
        report("write", sum(file.record_count for file in files.data_files), None)

    written = adopt_all(files, work, tasks, chosen, lead=None if decided else 0, progress=progress)
    source.was_written([note for one in written for note in one.note[1]])
    counts = Counts(
        sum(one.rows for one in written), sum(one.requests for one in written), sum(one.note[0] for one in written)
    )
    report("commit", counts.rows, counts.rows)
    return counts, files.commit(replace=replace)


def fits(source: BucketSource, table: Table) -> bool:
    """Whether the source can be written bucket by bucket: one count of buckets divides the other."""
    buckets = table_buckets(table)
    if not table_layout(table).is_bucketed or buckets is None or source.num_buckets is None:
        return False
    low, high = sorted((buckets, source.num_buckets))
    return high % low == 0
