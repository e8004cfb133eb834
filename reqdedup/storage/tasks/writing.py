"""A source that lies in buckets, written into a table without a shuffle: one task per bucket, one commit.

join, sample, ... of N buckets       bucket 0 -> task -> files of bucket 0         users of bucket b of N are in
table of N, or of a multiple         bucket 1 -> task -> files of bucket 1 ...     bucket b % M of M, if M divides N
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.dedup.checksum import RunningChecksum
from reqdedup.distributed import Engine, engine_for
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.changes import check_one_spec, check_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.layout import table_buckets, table_layout, table_schema
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.tasks.alike import adopt_all, is_decided
from reqdedup.storage.write.writer import (
    Counts,
    WriteProgress,
    WriteReport,
    set_properties,
    write_in_order,
    write_rows,
)


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

    def of_unit(self, unit: int, num_units: int, notes: list[Any]) -> Iterator[pa.RecordBatch]:
        """The rows of every bucket b with b % num_units == unit; num_units divides num_buckets.

        notes: takes what the source has to say about them, once they are read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class WriteTask:
    """A unit of the source to write: a bucket, or a few."""

    unit: int
    write_id: str

    @property
    def name(self) -> str:
        return f"bucket {self.unit}"


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

    def run(self, task: WriteTask) -> Written:
        """Write the unit; its note: users, and what the source had to say."""
        table, running = self.table.table, RunningChecksum()
        schema, notes = table_schema(table), list[Any]()
        with StagedFiles(table, updates=self.updates, write_id=task.write_id) as files:
            rows = running.through(self.source.of_unit(task.unit, self.num_units, notes))
            if self.in_order:
                *_, done = [Counts(), *write_in_order(files, [(task.unit, rows)], schema, renew=self.renew)]
            else:
                done = write_rows(files, rows, schema, spill_dir=self.spill_dir, renew=self.renew)
            return files.hand_over(running.so_far, num_requests=done.requests, note=(done.users, notes))


def write_buckets(
    table: Table,
    source: BucketSource,
    *,
    mode: Literal["replace", "append"] = "replace",
    progress: Callable[[WriteProgress], None] | None = None,
    spill_dir: str | Path | None = None,
    properties: Mapping[str, str] | None = None,
    engine: str | Engine | None = None,
) -> tuple[WriteReport, list[Any]]:
    """Write a source that lies in buckets into a bucketed table in one commit; what was written, and all notes.

    Parameters and errors are those of `write`; engine: where buckets are written: "inline", "processes:N"; see
    `reqdedup.distributed`. Raises ValueError for bucket counts that do not divide each other.
    """
    started = time.monotonic()
    table.refresh()
    name, buckets, layout = ".".join(table.name()), table_buckets(table), table_layout(table)
    if mode not in ("replace", "append"):
        raise ValueError(f"mode must be 'replace' or 'append', found {mode!r}")
    if not layout.is_bucketed or buckets is None or source.num_buckets is None:
        raise ValueError(
            f"{name}: a bucketed table and a source in buckets required to be written bucket by bucket, found "
            f"{layout.name} and a source of {source.num_buckets} buckets; write(table, source.batches()) takes any"
        )
    low, high = sorted((buckets, source.num_buckets))
    if high % low:
        raise ValueError(
            f"{name}: bucket counts that divide each other required, found {buckets} in the table and "
            f"{source.num_buckets} in the source; write(table, source.batches()) takes any"
        )
    check_one_spec(table, "an append") if mode == "append" else check_spec(table)
    updates, rows_done = set_properties(properties), 0
    with StagedFiles(table, updates=updates) as files:
        work = BucketWrite(
            table=PortableTable(table),
            source=source,
            num_units=low,
            in_order=low == buckets and source.in_order(low),
            updates=updates,
            spill_dir=spill_dir,
            renew=mode == "replace",
        )
        tasks = [WriteTask(unit=unit, write_id=files.write_id) for unit in range(low)]
        chosen = engine_for(engine, work, num_tasks=low, num_bytes=source.num_bytes)

        def report(done: int) -> None:
            if progress is not None:
                rows = sum(file.record_count for file in files.data_files)
                progress(WriteProgress("write", rows, None, time.monotonic() - started))

        decided = mode == "append" and is_decided(table, table_schema(table), updates)
        written = adopt_all(files, work, tasks, chosen, lead=None if decided else 0, progress=report)
        rows_done = sum(one.rows for one in written)
        if progress is not None:
            progress(WriteProgress("commit", rows_done, rows_done, time.monotonic() - started))
        snapshot_id = files.commit(replace=mode == "replace")
        data_files = files.data_files
    return WriteReport(
        rows=rows_done,
        requests=sum(one.requests for one in written),
        users=sum(one.note[0] for one in written),
        files=len(data_files),
        row_groups=sum(len(file.split_offsets or []) for file in data_files),
        bytes=sum(file.file_size_in_bytes for file in data_files),
        spill_bytes=0,
        seconds=time.monotonic() - started,
        snapshot_id=snapshot_id,
    ), [note for one in written for note in one.note[1]]
