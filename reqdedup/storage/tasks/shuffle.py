"""A write of rows in any order by many processes: map tasks sort them out by partition, others write a partition each.

    row groups 0-9    map 0 -> exchange file | bucket 0 | bucket 1 | ...     bucket 0 of each file -> files of bucket 0
    row groups 10-19  map 1 -> exchange file | bucket 0 | bucket 1 | ...     bucket 1 of each file -> files of bucket 1

Between them are files under the table's own location, which go at the end, and which `sweep` finds if the driver is
killed. Parts of a request keep the order of the source, so that the files are those of one process. Gate: rows and
checksum of all maps equal those read back from all files. docs/decisions/0082.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.dedup.checksum import ContentChecksum, RunningChecksum, content_checksum
from reqdedup.distributed import Engine
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.form import preview
from reqdedup.storage.iceberg.layout import table_layout, table_schema
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.tasks.alike import adopt_all, is_decided
from reqdedup.storage.tasks.leftovers import remove_left
from reqdedup.storage.write import writer
from reqdedup.storage.write.exchange import Exchanged, Range, exchange_path, read_exchange, write_exchange
from reqdedup.storage.write.writer import Counts, Report, lead_of

MAP_ROWS = 2**19
"""Rows of a map task, if its row groups allow: some 100 MB of memory, and a second or two."""


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """Row groups to sort out by partition."""

    number: int
    groups: tuple[RowGroup, ...]
    write_id: str

    @property
    def name(self) -> str:
        return f"map {self.number}"


@dataclass(frozen=True, kw_only=True)
class MapWork:
    """What the map tasks of a write share."""

    table: PortableTable
    source: FileSource
    updates: tuple[TableUpdate, ...]
    spill_dir: str | Path | None

    def run(self, task: MapTask) -> Exchanged:
        table, running = preview(self.table.table, self.updates), RunningChecksum()
        schema = table_schema(table)
        with writer.open_spill(table, schema, table_layout(table), seed=0, directory=self.spill_dir) as spill:
            for batch in running.through(self.source.stream(task.groups, list(schema.names))):
                spill.add(batch)
            spill.finish()
            path = exchange_path(table, task.write_id, task.number)
            return write_exchange(table.io, path, spill, running.so_far)


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

    table: PortableTable
    updates: tuple[TableUpdate, ...]
    spill_dir: str | Path | None
    renew: bool

    def run(self, task: ReduceTask) -> Written:
        """Write the partition and read it back; its note: number of requests, and its users, rising."""
        table = preview(self.table.table, self.updates)
        schema, layout = table_schema(table), table_layout(table)
        with (
            StagedFiles(self.table.table, updates=self.updates, write_id=task.write_id) as files,
            writer.open_spill(table, schema, layout, seed=0, directory=self.spill_dir) as spill,
        ):
            read_exchange(table.io, task.ranges, spill, task.partition)
            spill.finish()
            for _ in writer.write_files(files, spill, layout, seed=0, renew=self.renew):
                pass
            num_requests, _ = writer.count_requests(spill, users_apart=True)
            users = np.unique(spill.keys(task.partition)[0])
            paths = [data_file.file_path for data_file in files.data_files]
            found = content_checksum(table_files(table, paths, schema))
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


def map_tasks(source: FileSource, write_id: str) -> list[MapTask]:
    """Neighbouring row groups together, MAP_ROWS or one of them each."""
    runs: list[list[RowGroup]] = []
    num_rows = 0
    for group in source.row_groups():
        if not runs or num_rows + group.num_rows > MAP_ROWS:
            runs.append([])
            num_rows = 0
        runs[-1].append(group)
        num_rows += group.num_rows
    return [MapTask(number=number, groups=tuple(groups), write_id=write_id) for number, groups in enumerate(runs)]


def commit_shuffled(
    files: StagedFiles,
    source: FileSource,
    *,
    replace: bool,
    report: Report,
    spill_dir: str | Path | None,
    engine: Engine,
) -> tuple[Counts, int, int | None]:
    """Write a source by maps and reduces as files of `files`, which it then commits.

    What was written, bytes exchanged, and the snapshot. replace, spill_dir, engine: as of `write`.
    """
    table, schema = files.table, table_schema(files.target)
    maps: dict[int, Exchanged] = {}
    rows: Counter[int] = Counter()
    try:
        mapping = MapWork(table=PortableTable(table), source=source, updates=files.updates, spill_dir=spill_dir)
        num_rows = 0
        with (
            _nothing_left(table, files.write_id),
            contextlib.closing(engine.run(mapping, map_tasks(source, files.write_id))) as answers,
        ):
            for number, exchanged in answers:
                rows.update(dict(zip(exchanged.partitions.tolist(), exchanged.num_rows.tolist())))
                maps[number] = replace_fields(exchanged, num_rows=exchanged.num_rows[:0].copy())  # the driver holds all
                num_rows += exchanged.checksum.rows
                report("spill", num_rows, None)
        tasks = ReduceTasks([maps[number] for number in sorted(maps)], rows, files.write_id)
        work = ReduceWork(table=PortableTable(table), updates=files.updates, spill_dir=spill_dir, renew=replace)
        decided = not len(tasks) or (not replace and is_decided(table, schema, files.updates))
        written = adopt_all(
            files,
            work,
            tasks,
            engine,
            lead=None if decided else lead_of([rows[partition] for partition in sorted(rows)]),
            progress=lambda done: report("write", sum(one.record_count for one in files.data_files), num_rows),
        )
        _check(table, [one.checksum for one in maps.values()], [one.checksum for one in written])
        report("commit", num_rows, num_rows)
        snapshot_id = files.commit(replace=replace)
    finally:
        for exchanged in maps.values():
            with contextlib.suppress(Exception):  # the sweep of orphans removes what stays
                table.io.delete(exchanged.path)
    counts = Counts(num_rows, sum(one.note[0] for one in written), _num_users([one.note[1] for one in written]))
    return counts, sum(exchanged.num_bytes for exchanged in maps.values()), snapshot_id


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


def _check(table: Table, read: Sequence[ContentChecksum], written: Sequence[ContentChecksum]) -> None:
    """The gate: what all tasks have written is what all tasks have read."""
    before, after = (sum(sums, ContentChecksum()) for sums in (read, written))
    if before != after:
        raise IntegrityError(
            f"{'.'.join(table.name())}: the rows of the source required in the new files ({before}), found {after}; "
            "nothing was committed. This is a defect of the reader or the writer: report it"
        )
