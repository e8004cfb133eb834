"""A write of rows in any order by many processes: map tasks sort them out by partition, others write a partition each.

    row groups 0-9    map 0 -> exchange file | bucket 0 | bucket 1 | ...     bucket 0 of each file -> files of bucket 0
    row groups 10-19  map 1 -> exchange file | bucket 0 | bucket 1 | ...     bucket 1 of each file -> files of bucket 1

Between them are files under the table's own location, which go at the end, and which `sweep` finds if the driver is
killed. Parts of a request keep the order of the source, so that the files are those of one process. Gate: rows and
checksum of all maps equal those read back from all files. docs/decisions/0082.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.dedup.checksum import ContentChecksum, RunningChecksum, content_checksum
from reqdedup.distributed import Engine, Inline, engine_for
from reqdedup.storage.iceberg.changes import check_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import IntegrityError
from reqdedup.storage.iceberg.layout import Layout, table_layout, table_schema
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.read.table_source import table_files
from reqdedup.storage.tasks.alike import adopt_all, is_decided, lead_of
from reqdedup.storage.tasks.leftovers import remove_left
from reqdedup.storage.write import writer
from reqdedup.storage.write.exchange import Exchanged, Range, exchange_path, read_exchange, write_exchange
from reqdedup.storage.write.writer import WriteProgress, WriteReport, set_properties

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
    spill_dir: str | Path | None

    def run(self, task: MapTask) -> Exchanged:
        table, running = self.table.table, RunningChecksum()
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


@dataclass(frozen=True, kw_only=True)
class ReduceWork:
    """What the tasks that write partitions share. updates, renew: see `run_alike`."""

    table: PortableTable
    updates: tuple[TableUpdate, ...]
    spill_dir: str | Path | None
    renew: bool

    def run(self, task: ReduceTask) -> Written:
        """Write the partition and read it back; its note: number of requests, and its users, rising."""
        table = self.table.table
        schema, layout = table_schema(table), table_layout(table)
        with (
            StagedFiles(table, updates=self.updates, write_id=task.write_id) as files,
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


class _ReduceTasks(Sequence[ReduceTask]):
    """A task per partition, made when it is asked for: all ranges at once would be (maps x partitions) objects."""

    def __init__(self, maps: Sequence[Exchanged], write_id: str) -> None:
        self._maps, self._write_id = maps, write_id
        self._partitions = np.unique(np.concatenate([one.partitions for one in maps])).tolist() if maps else []

    def __len__(self) -> int:
        return len(self._partitions)

    def __getitem__(self, index: Any) -> Any:
        partition = self._partitions[index]
        ranges = tuple(found for one in self._maps if (found := one.of(partition)) is not None)
        return ReduceTask(partition=partition, ranges=ranges, write_id=self._write_id)

    def num_rows(self) -> list[int]:
        """Of each partition."""
        rows: dict[int, int] = dict.fromkeys(self._partitions, 0)
        for one in self._maps:
            for partition, count in zip(one.partitions.tolist(), one.num_rows.tolist()):
                rows[partition] += count
        return list(rows.values())


def write(
    table: Table,
    batches: Iterable[pa.RecordBatch] | FileSource,
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
        not spilled. Or a source with row groups (`TableSource`), which several processes can read.
    layout: the table's own if None; must be it if given (`replace_table` changes it).
    mode: "replace", the table then holds exactly these rows, or "append".
    progress: called while it runs.  seed: of the SHUFFLED order.  spill_dir: for the temporary files.
    properties: of the table, set in the same commit: what its rows were made from.
    engine: where a source with row groups is read and written: "inline", "processes:N"; see `reqdedup.distributed`. A
        stream of batches, and the SHUFFLED layout, are written by this process alone.
    Raises ValueError for wrong batches and options, ConflictError if another writer was faster; the table then is as it
    was.
    """
    table.refresh()
    split = isinstance(batches, FileSource) and table_layout(table) is not Layout.SHUFFLED
    if not split and engine is not None and not (chosen := _named(engine)).is_here:
        raise ValueError(
            f"{'.'.join(table.name())}: a source with row groups (TableSource) and a layout with partitions required "
            f"by engine {chosen.name}, found {type(batches).__name__} and {table_layout(table).name}; leave the engine "
            "out"
        )
    options: dict[str, Any] = {"mode": mode, "progress": progress, "spill_dir": spill_dir, "properties": properties}
    if isinstance(batches, FileSource):
        source = batches
        if split:
            tasks = map_tasks(source, "")
            num_bytes = getattr(source, "num_bytes", 0)
            chosen = engine_for(engine, source, num_tasks=len(tasks), num_bytes=num_bytes)  # type: ignore[arg-type]
            if not chosen.is_here:
                return write_shuffled(table, source, layout, engine=chosen, **options)
        batches = source.batches()
    return writer.write(table, batches, layout, seed=seed, **options)


def _named(engine: str | Engine) -> Engine:
    return engine_for(engine, Inline(), num_tasks=1)  # type: ignore[arg-type]


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


def write_shuffled(
    table: Table,
    source: FileSource,
    layout: Layout | None,
    *,
    mode: str,
    progress: Callable[[WriteProgress], None] | None,
    spill_dir: str | Path | None,
    properties: Mapping[str, str] | None,
    engine: Engine,
) -> WriteReport:
    """`write` by maps and reduces; its parameters and errors."""
    started = time.monotonic()
    writer.check_options(table, layout, mode)
    check_spec(table)
    updates, schema = set_properties(properties), table_schema(table)

    def report(phase: str, rows_done: int, rows_total: int | None) -> None:
        if progress is not None:
            progress(WriteProgress(phase, rows_done, rows_total, time.monotonic() - started))

    maps: dict[int, Exchanged] = {}
    with StagedFiles(table, updates=updates) as files:
        try:
            mapping, num_rows = MapWork(table=PortableTable(table), source=source, spill_dir=spill_dir), 0
            with (
                _nothing_left(table, files.write_id),
                contextlib.closing(engine.run(mapping, map_tasks(source, files.write_id))) as answers,
            ):
                for number, exchanged in answers:
                    maps[number] = exchanged
                    num_rows += exchanged.checksum.rows
                    report("spill", num_rows, None)
            tasks = _ReduceTasks([maps[number] for number in sorted(maps)], files.write_id)
            reducing = ReduceWork(
                table=PortableTable(table), updates=updates, spill_dir=spill_dir, renew=mode == "replace"
            )
            decided = not len(tasks) or (mode == "append" and is_decided(table, schema, updates))
            written = adopt_all(
                files,
                reducing,
                tasks,
                engine,
                lead=None if decided else lead_of(tasks.num_rows()),
                progress=lambda done: report("write", sum(one.record_count for one in files.data_files), num_rows),
            )
            _check(table, [one.checksum for one in maps.values()], [one.checksum for one in written])
            report("commit", num_rows, num_rows)
            snapshot_id = files.commit(replace=mode == "replace")
        finally:
            for exchanged in maps.values():
                with contextlib.suppress(Exception):  # the sweep of orphans removes what stays
                    table.io.delete(exchanged.path)
        data_files = files.data_files
    return WriteReport(
        rows=num_rows,
        requests=sum(one.note[0] for one in written),
        users=_num_users([one.note[1] for one in written]),
        files=len(data_files),
        row_groups=sum(len(file.split_offsets or []) for file in data_files),
        bytes=sum(file.file_size_in_bytes for file in data_files),
        spill_bytes=sum(exchanged.num_bytes for exchanged in maps.values()),
        seconds=time.monotonic() - started,
        snapshot_id=snapshot_id,
    )


def _num_users(found: Sequence[int | np.ndarray]) -> int:
    """Of all partitions: a user is in one bucket, and on several days."""
    days = [users for users in found if isinstance(users, np.ndarray)]
    return len(np.unique(np.concatenate(days))) if days else sum(found)  # type: ignore[arg-type]


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
