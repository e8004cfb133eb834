"""A write of rows in any order by many processes: map tasks sort them out by partition, others write a partition each.

    part 0   map 0 -> exchange file | bucket 0 | bucket 1 | ...     bucket 0 of each file -> files of bucket 0
    part 1   map 1 -> exchange file | bucket 0 | bucket 1 | ...     bucket 1 of each file -> files of bucket 1

Between them are files under the table's own location, which go at the end, and which `sweep` finds if the driver is
killed. Parts of a request keep the order of the source, so that the files are those of one process. Gate: rows and
checksum of all maps equal those read back from all files. docs/decisions/0082.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.dedup.checksum import ContentChecksum, RunningChecksum, content_checksum
from reqdedup.distributed import Engine
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.form import preview
from reqdedup.storage.iceberg.layout import table_layout
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.tasks.alike import adopt_all, is_decided
from reqdedup.storage.tasks.leftovers import remove_left
from reqdedup.storage.tasks.parts import Parts, SplitSource
from reqdedup.storage.write import writer
from reqdedup.storage.write.exchange import Exchanged, ExchangeFolder, Range, read_exchange, write_exchange
from reqdedup.storage.write.spill import Spill
from reqdedup.storage.write.writer import Counts, Report, lead_of

HOLD_BYTES = 96 * 2**20
"""Of requests, and of rows, that a task keeps in memory; more goes through its disk."""


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """A part of the source to sort out by partition."""

    number: int
    part: Any
    write_id: str

    @property
    def name(self) -> str:
        return f"map {self.number}"


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """What all tasks of a write share. schema: of its rows.  remember: see `Spill`."""

    table: PortableTable
    schema: EngagementSchema
    updates: tuple[TableUpdate, ...]
    spill_dir: str | Path | None = None
    remember: int = 0

    @property
    def target(self) -> Table:
        """The table as it will be."""
        return preview(self.table.table, self.updates)

    def spill(self) -> Spill:
        layout = table_layout(self.target)
        return writer.open_spill(
            self.target,
            self.schema,
            layout,
            seed=0,
            directory=self.spill_dir,
            hold_bytes=HOLD_BYTES,
            remember=self.remember,
        )


@dataclass(frozen=True, kw_only=True)
class MapWork:
    """What the map tasks of a write share."""

    shuffle: Shuffle
    source: Parts

    def run(self, task: MapTask) -> Exchanged:
        running, notes = RunningChecksum(), list[Any]()
        with self.shuffle.spill() as spill:
            for batch in running.through(self.source.of_part(task.part, notes)):
                spill.add(batch)
            spill.finish()
            folder = ExchangeFolder(self.shuffle.table, task.write_id)
            return write_exchange(folder, f"map{task.number}", spill, running.so_far, notes)


@dataclass(frozen=True, kw_only=True)
class ReduceTask:
    """A partition to write, and where it lies in the exchange files."""

    partition: int
    ranges: tuple[Range, ...]
    write_id: str

    @property
    def name(self) -> str:
        return f"bucket {self.partition}"

    @property
    def num_bytes(self) -> int:
        return sum(one.end - one.start for one in self.ranges)


@dataclass(frozen=True, kw_only=True)
class ReduceWork:
    """What the tasks that write partitions share. updates, renew: see `run_alike`."""

    shuffle: Shuffle
    updates: tuple[TableUpdate, ...]
    renew: bool

    def run(self, task: ReduceTask) -> Written:
        """Write the partition and read it back; its note: number of requests, and its users, rising."""
        of_table, schema, layout = self.shuffle.table, self.shuffle.schema, table_layout(self.shuffle.target)
        with (
            StagedFiles(of_table.table, schema, self.updates, write_id=task.write_id) as files,
            self.shuffle.spill() as spill,
        ):
            read_exchange(ExchangeFolder(of_table, task.write_id), task.ranges, spill, task.partition)
            spill.finish()
            for _ in writer.write_files(files, spill, layout, seed=0, renew=self.renew):
                pass
            num_requests, _ = writer.count_requests(spill, users_apart=True)
            users = np.unique(spill.keys(task.partition)[0])
            paths = [data_file.file_path for data_file in files.data_files]
            found = content_checksum(table_files(files.target, paths, schema))
            return files.hand_over(
                ContentChecksum(spill.num_rows, found.checksum),
                num_requests=num_requests if layout.is_bucketed else None,
                note=(num_requests, len(users) if layout.is_bucketed else users),
            )


class ReduceTasks(Sequence[ReduceTask]):
    """A task per partition, made when it is asked for: all ranges at once would be (maps x partitions) objects."""

    def __init__(self, maps: Sequence[Exchanged], num_rows: Mapping[int, int], write_id: str) -> None:
        self._maps, self._write_id = maps, write_id
        self._partitions = sorted(num_rows)

    def __len__(self) -> int:
        return len(self._partitions)

    def __getitem__(self, index: Any) -> Any:
        partition = self._partitions[index]
        ranges = tuple(found for one in self._maps if (found := one.of(partition)) is not None)
        return ReduceTask(partition=partition, ranges=ranges, write_id=self._write_id)


def map_tasks(source: Parts, write_id: str) -> list[MapTask]:
    """One for each part."""
    return [MapTask(number=number, part=part, write_id=write_id) for number, part in enumerate(source.parts())]


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """What a shuffle has written, and not committed.

    counts: of all rows.  exchanged_bytes: of the files between.  checksum: of the rows that were read, and are written.
    """

    counts: Counts
    exchanged_bytes: int
    checksum: ContentChecksum


def shuffle(
    files: StagedFiles,
    source: Parts | SplitSource,
    schema: EngagementSchema,
    *,
    engine: Engine,
    report: Report,
    renew: bool = False,
    take: Callable[[int, list[Any]], None] = lambda number, notes: None,
    spill_dir: str | Path | None = None,
    remember: int = 0,
) -> Shuffled:
    """Write a source by maps and reduces as files of `files`, which it does not commit.

    renew, remember, spill_dir: as of `write_rows`.  take: called with number and notes of each part, in any order.
    Raises IntegrityError if the rows of all files are not those of all parts.
    """
    table, write_id = files.table, files.write_id
    work = Shuffle(
        table=PortableTable(table), schema=schema, updates=files.updates, spill_dir=spill_dir, remember=remember
    )
    folder = ExchangeFolder(work.table, write_id)
    log: SplitSource | None = None
    maps: dict[int, Exchanged] = {}
    rows: Counter[int] = Counter()
    try:
        num_rows = 0
        with _nothing_left(table, write_id):
            if isinstance(source, SplitSource):
                log, source = source, source.split(engine, folder)
                take = log.take
            tasks = map_tasks(source, write_id)
            with contextlib.closing(engine.run(MapWork(shuffle=work, source=source), tasks)) as answers:
                for number, exchanged in answers:
                    rows.update(dict(zip(exchanged.partitions.tolist(), exchanged.num_rows.tolist())))
                    take(number, exchanged.note)
                    # The driver holds all of them.
                    maps[number] = replace_fields(exchanged, num_rows=exchanged.num_rows[:0].copy(), note=None)
                    num_rows += exchanged.checksum.rows
                    report("spill", num_rows, None)
            if log is not None:
                log.was_read()
        reduces = ReduceTasks([maps[number] for number in sorted(maps)], rows, write_id)
        decided = not len(reduces) or (not renew and is_decided(table, schema, files.updates))
        written = adopt_all(
            files,
            ReduceWork(shuffle=work, updates=files.updates, renew=renew),
            reduces,
            engine,
            lead=None if decided else lead_of([rows[partition] for partition in sorted(rows)]),
            progress=lambda done: report("write", sum(one.record_count for one in files.data_files), num_rows),
        )
    finally:
        folder.remove([*folder.paths, *(exchanged.path for exchanged in maps.values())])
    checksum = _checked(table, [one.checksum for one in maps.values()], [one.checksum for one in written])
    counts = Counts(num_rows, sum(one.note[0] for one in written), _num_users([one.note[1] for one in written]))
    return Shuffled(
        counts=counts,
        exchanged_bytes=sum(exchanged.num_bytes for exchanged in maps.values()),
        checksum=checksum,
    )


def _num_users(found: Sequence[int | np.ndarray]) -> int:
    """Of all partitions: a user is in one bucket, and on several days."""
    days = [users for users in found if isinstance(users, np.ndarray)]
    of_buckets = sum(users for users in found if isinstance(users, int))
    return len(np.unique(np.concatenate(days))) if days else of_buckets


@contextlib.contextmanager
def _nothing_left(table: Table, write_id: str) -> Iterator[None]:
    """If the block fails, what its tasks have written goes; they have ended then."""
    try:
        yield
    except BaseException:
        remove_left(table, [write_id])
        raise


def _checked(table: Table, read: Sequence[ContentChecksum], written: Sequence[ContentChecksum]) -> ContentChecksum:
    """The gate: what all tasks have written is what all tasks have read."""
    before, after = (sum(sums, ContentChecksum()) for sums in (read, written))
    if before != after:
        raise IntegrityError(
            f"{'.'.join(table.name())}: the rows of the source required in the new files ({before}), found {after}; "
            "nothing was committed. This is a defect of the reader or the writer: report it"
        )
    return after
