"""Another bucket count for a table: all its rows written again under a new partition spec, in one commit.

Readers see the old files in the old buckets or the new ones in the new buckets. Old snapshots keep their spec and stay
readable. Writers that began before the change are refused at their commit, since their files lie in the old buckets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate
from pyiceberg.transforms import BucketTransform

from reqdedup.dedup.checksum import RunningChecksum
from reqdedup.dedup.rows import take_rows
from reqdedup.dedup.streams import REQUEST_KEY, ROW_KEY
from reqdedup.distributed import SHUFFLE_PAYS_FROM, Engine, engine_for
from reqdedup.schema import ITEM_ID, USER_ID, EngagementSchema
from reqdedup.storage.features.values import row_groups
from reqdedup.storage.iceberg.changes import check_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.form import spec_updates
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets, table_layout
from reqdedup.storage.iceberg.manifests import stored_bytes
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.same_requests import OPERATION
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.maintenance.compaction import check_same_rows
from reqdedup.storage.maintenance.live import LiveFile, live_files
from reqdedup.storage.maintenance.user_rows import made_from, rewrite_schema
from reqdedup.storage.read.buckets import SortedTable
from reqdedup.storage.read.feature_table import buckets_of_files, is_by_position, is_feature_table
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.tasks import BucketTask, adopt_all, is_decided
from reqdedup.storage.tasks.parts import row_groups_of
from reqdedup.storage.tasks.shuffle import shuffle
from reqdedup.storage.write.writer import Counts, write_in_order, write_rows

MAX_READS = 4
"""Times that an old bucket is read for the new ones that it is split into; beyond, the spill costs less."""


@dataclass(frozen=True, kw_only=True)
class RebucketReport:
    """What it did. old_buckets, num_buckets: the counts.  rows, files, bytes: of the table afterwards."""

    old_buckets: int
    num_buckets: int
    rows: int
    files: int
    bytes: int
    seconds: float
    snapshot_id: int | None


def rebucket(
    table: Table,
    num_buckets: int,
    *,
    progress: Callable[[int, int], None] | None = None,
    spill_dir: str | Path | None = None,
    engine: str | Engine | None = None,
) -> RebucketReport:
    """Write all rows of a bucketed table, or of a feature table with keys, into `num_buckets` buckets.

    progress: called with rows done and rows in total.  spill_dir: for temporary files, which take the table's
    deduplicated rows once if they must be sorted anew.
    engine: where buckets are read and written: "inline", "processes:N"; see `reqdedup.distributed`.
    Joined tables need counts that divide each other, and a feature table the count of its main table for new backfills:
    change them together. Verified by checksum before the commit. Raises ValueError for tables without buckets, for a
    feature table by position (create it again) and one whose counts do not divide each other; ConflictError if another
    writer was faster. Then nothing changed.
    """
    started = time.monotonic()
    table.refresh()
    name, old_buckets = ".".join(table.name()), table_buckets(table)
    if num_buckets < 1:
        raise ValueError(f"{name}: num_buckets must be positive, found {num_buckets}")
    is_feature = is_feature_table(table)
    if is_feature and is_by_position(table):
        raise ValueError(
            f"{name}: a feature table with keys required, found one by position; create it again with the new count of "
            "its main table and compute the features"
        )
    check_spec(table)
    if old_buckets is None:
        raise ValueError(
            f"{name}: partition spec bucket(N, user_id) required, found {table_layout(table).name} partitioned by "
            f"{table.spec()}; `reqdedup convert` writes it into a bucketed layout"
        )
    user_id = table.schema().find_field(USER_ID).field_id
    transform: BucketTransform[int] = BucketTransform(num_buckets)
    field = PartitionField(user_id, PARTITION_FIELD_ID_START, transform, f"user_bucket_{num_buckets}")
    updates = spec_updates(table, PartitionSpec(field))
    schema, old = rewrite_schema(table), live_files(table)
    num_rows, before = sum(file.num_rows for file in old), RunningChecksum()
    source = table_files(table, [file.path for file in old], schema)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, num_rows)

    with StagedFiles(table, schema, updates) as files:
        if is_feature or _in_order(old, old_buckets, num_buckets):
            side = _sorted_side(table, old, schema, REQUEST_KEY if is_feature else ROW_KEY)
            _check_counts(side, num_buckets, is_feature)
            work = Rebucketing(
                table=PortableTable(table), schema=schema, side=side, num_buckets=num_buckets, updates=updates
            )
            of_task = side.num_bytes // num_buckets
            tasks = [BucketTask(bucket=b, write_id=files.write_id, num_bytes=of_task) for b in range(num_buckets)]
            chosen = engine_for(engine, work, num_tasks=num_buckets, num_bytes=side.num_bytes)
            lead = None if is_decided(table, schema, updates) else 0
            adopt_all(files, work, tasks, chosen, lead=lead, progress=lambda done: report(_num_rows(files.data_files)))
            if _num_rows(files.data_files) != num_rows:
                raise IntegrityError(
                    f"{name}: {num_rows:,} rows required in the new buckets, found {_num_rows(files.data_files):,}; "
                    "nothing was committed"
                )
        elif not (chosen := _engine_of(table, source, engine)).is_here:
            parts = row_groups_of(source, schema)
            shuffle(
                *(files, parts, schema),
                engine=chosen,
                report=lambda phase, done, total: report(done) if phase == "write" else None,
                spill_dir=spill_dir,
            )
        else:
            batches = before.through(source.batches())
            num_requests = write_rows(files, _reporting(batches, report), schema, spill_dir=spill_dir).requests
            files.verify(num_rows=num_rows, num_requests=num_requests)
            check_same_rows(table, schema, before, files.data_files)
        new = files.data_files
        snapshot_id = files.commit(
            replace=True,
            removed=[file.data_file for file in old],
            properties={OPERATION: "rebucket", **made_from(table)},
        )
    table.refresh()
    return RebucketReport(
        old_buckets=old_buckets,
        num_buckets=num_buckets,
        rows=num_rows,
        files=len(new),
        bytes=sum(file.file_size_in_bytes for file in new),
        seconds=time.monotonic() - started,
        snapshot_id=snapshot_id,
    )


def _engine_of(table: Table, source: FileSource, engine: str | Engine | None) -> Engine:
    """For rows that must be sorted anew."""
    work: Any = (PortableTable(table), source)
    num_bytes = stored_bytes(table)
    return engine_for(engine, work, num_tasks=len(source.paths), num_bytes=num_bytes, pays_from=SHUFFLE_PAYS_FROM)


def _in_order(old: Sequence[LiveFile], old_buckets: int, num_buckets: int) -> bool:
    """Whether the new buckets can be read from the old ones as sorted streams, without reading them too often."""
    low, high = sorted((old_buckets, num_buckets))
    return high % low == 0 and num_buckets <= MAX_READS * old_buckets and all(file.is_sorted for file in old)


def _sorted_side(table: Table, old: Sequence[LiveFile], schema: EngagementSchema, order: Sequence[str]) -> SortedTable:
    data_files = [file.data_file for file in old]
    source = table_files(
        table,
        [file.path for file in old],
        schema,
        buckets=[file.partition for file in old],
        num_buckets=buckets_of_files(table, data_files),
    )
    return SortedTable(table, source, order)


def _check_counts(side: SortedTable, num_buckets: int, is_feature: bool) -> None:
    """Raise ValueError if a feature table, which is never sorted anew, cannot be split or merged."""
    low, high = sorted((side.num_buckets, num_buckets))
    if is_feature and high % low:
        raise ValueError(
            f"{side.name}: bucket counts that divide each other required for a feature table, found {side.num_buckets} "
            f"and {num_buckets}; take a multiple or a divisor, or create it again"
        )


@dataclass(frozen=True, kw_only=True)
class Rebucketing:
    """What the tasks of a change of the count share. side: the old buckets.  updates, renew: see `run_alike`."""

    table: PortableTable
    schema: EngagementSchema
    side: SortedTable
    num_buckets: int
    updates: tuple[TableUpdate, ...]
    renew: bool = False

    def run(self, task: BucketTask) -> Written:
        """Write the new bucket and read it back; one of several that an old bucket is split into reads all of it."""
        table, schema, side, bucket = self.table.table, self.schema, self.side, task.bucket
        units, running = min(side.num_buckets, self.num_buckets), RunningChecksum()
        rows = running.through(
            _of_bucket(side.stream(bucket % units, units, list(schema.names)), bucket, self.num_buckets)
        )
        num_requests = 0
        with StagedFiles(table, schema, self.updates, write_id=task.write_id) as files:
            if ITEM_ID not in schema.names:  # a feature table, with a row per request
                for group in row_groups(rows):
                    num_requests += files.write(bucket, pa.Table.from_batches([group]), target_bytes=2**63)
                files.close_file()
            else:
                *_, done = [Counts(), *write_in_order(files, [(bucket, rows)], schema, renew=self.renew)]
                num_requests = done.requests
            check_same_rows(table, schema, running, files.data_files)
            return files.hand_over(running.so_far, num_requests=num_requests)


def _num_rows(files: Sequence[DataFile]) -> int:
    return sum(file.record_count for file in files)


def _of_bucket(rows: Iterator[pa.RecordBatch], bucket: int, num_buckets: int) -> Iterator[pa.RecordBatch]:
    for batch in rows:
        kept = take_rows(batch, buckets_of(batch.column(USER_ID).to_numpy(), num_buckets) == bucket)
        if kept.num_rows:
            yield kept


def _reporting(batches: Iterator[pa.RecordBatch], report: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        report(done)
