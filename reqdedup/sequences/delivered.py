"""Reading `raw_events`: a range of positions, with what was delivered within a horizon before it, in parts by user.

What fits into memory is one part. More is spread over files by the bucket of the user, so that a part holds all events
of its users; memory is that of a part, however many events there are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from pyiceberg.expressions import AlwaysTrue, GreaterThanOrEqual
from pyiceberg.table import Table

from reqdedup.logs.ids import mix64
from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_ID, USER
from reqdedup.sequences.tables import POSITION, arrow_schema
from reqdedup.storage.iceberg.layout import buckets_of

PART_ROWS = 1_048_576
"""Delivered events that are worked on together."""
BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Part:
    """Delivered events in the order of position. earlier: of those before, within the horizon, the rows with these ids.
    buckets: of the timeline that their users lie in; None for any."""

    delivered: pl.DataFrame
    earlier: Callable[[pl.Series], pl.DataFrame]
    buckets: frozenset[int] | None


@dataclass(frozen=True)
class _File:
    """A file of `raw_events`. first, last: positions.  arrival_us: the latest of its events'."""

    path: str
    num_rows: int
    first: int
    last: int
    arrival_us: int


class DeliveredRange:
    """The events of `raw_events` from position `start` to before `end`.

    since_us: what arrived before this time is not among them; files of days before, and before their horizon, are not
    even planned.
    """

    def __init__(self, raw: Table, start: int, end: int, *, horizon_us: int, since_us: int = 0) -> None:
        self._raw, self._start, self._end = raw, start, end
        self._schema = arrow_schema(raw)
        self._files = _planned(raw, since_us - horizon_us)
        found = [file for file in self._files if file.first < end and file.last >= start]
        self._paths = [(file.path, file.num_rows) for file in found]
        self._horizon_us = horizon_us
        self.num_rows = sum(count for _, count in self._paths)

    def parts(self, num_buckets: int, part_rows: int = PART_ROWS) -> Iterator[Part]:
        """The events once, all of a user's in one part."""
        if self.num_rows <= part_rows:
            delivered = self._frame(list(self._batches(self._paths, self._start, self._end)))
            if delivered.height:
                before = self._before(int(delivered[ARRIVAL_TS].dt.epoch("us")[0]))
                yield Part(delivered, lambda ids: self._matching(before, ids), None)
            return
        splits = -(-self.num_rows // (num_buckets * part_rows))
        with tempfile.TemporaryDirectory(prefix="reqdedup-events-") as folder:
            first = self._first_arrival()
            before = self._before(first)
            new = _spread(self._batches(self._paths, self._start, self._end), Path(folder) / "new", num_buckets, splits)
            old = _spread(self._batches(before, 0, self._start), Path(folder) / "old", num_buckets, splits)
            for part in sorted(new):
                delivered = self._frame(_ipc_batches(new[part]))
                earlier = self._frame(_ipc_batches(old[part])) if part in old else delivered.clear()
                yield Part(
                    delivered,  # a default binds the part's own rows; mypy cannot infer such a lambda
                    lambda ids, rows=earlier: rows.filter(pl.col(EVENT_ID).is_in(ids.implode())),  # type: ignore[misc]
                    frozenset([part % num_buckets]),
                )

    def before(self, arrival_us: int) -> pl.DataFrame:
        """The events before the range that a delivery from `arrival_us` on may repeat."""
        return self._frame(list(self._batches(self._before(arrival_us), 0, self._start)))

    def _before(self, arrival_us: int) -> list[tuple[str, int]]:
        """Files with events before the range that one which arrives at this time may repeat."""
        since_us = arrival_us - self._horizon_us
        found = [file for file in self._files if file.first < self._start and file.arrival_us >= since_us]
        return [(file.path, file.num_rows) for file in found]

    def _matching(self, paths: list[tuple[str, int]], ids: pl.Series) -> pl.DataFrame:
        """Rows before the range with these ids. Ids are read first: few come again, and those mostly soon."""
        kept: list[pl.DataFrame] = []
        for path in paths:
            names = [EVENT_ID, POSITION]
            found = self._frame(list(self._batches([path], 0, self._start, names)), names)
            again = found.filter(pl.col(EVENT_ID).is_in(ids.implode()))[POSITION]
            if again.len():
                whole = self._frame(list(self._batches([path], 0, self._start)))
                kept.append(whole.filter(pl.col(POSITION).is_in(again.implode())))
        return pl.concat(kept) if kept else self._frame([])

    def _batches(
        self, paths: Sequence[tuple[str, int]], start: int, end: int, names: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        wanted = pa.schema([self._schema.field(name) for name in names]) if names else self._schema
        for path, _ in paths:
            with self._raw.io.new_input(path).open() as stream, pq.ParquetFile(stream) as file:
                has = [name for name in wanted.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(BATCH_ROWS, columns=has, use_threads=False):
                    position = batch.column(POSITION).to_numpy()
                    is_in = (position >= start) & (position < end)
                    if not is_in.all():
                        batch = batch.filter(pa.array(is_in))
                    if batch.num_rows:
                        columns = [
                            batch.column(field.name).cast(field.type)
                            if field.name in has
                            else pa.nulls(batch.num_rows, field.type)
                            for field in wanted
                        ]
                        yield pa.RecordBatch.from_arrays(columns, schema=wanted)

    def _frame(self, batches: Sequence[pa.RecordBatch], names: Sequence[str] | None = None) -> pl.DataFrame:
        schema = pa.schema([self._schema.field(name) for name in names]) if names else self._schema
        frame = pl.from_arrow(pa.Table.from_batches(batches, schema))
        assert isinstance(frame, pl.DataFrame)
        return frame if frame[POSITION].is_sorted() else frame.sort(POSITION)

    def _first_arrival(self) -> int:
        return min(
            int(batch.column(ARRIVAL_TS).cast(pa.int64()).to_numpy().min())
            for batch in self._batches(self._paths, self._start, self._end, [ARRIVAL_TS, POSITION])
        )


def _planned(raw: Table, since_us: int) -> list[_File]:
    """The files with events that arrived from then on, by path."""
    if raw.current_snapshot() is None:
        return []
    # plain values, where pyiceberg's types ask for literals
    row_filter = GreaterThanOrEqual(ARRIVAL_TS, since_us) if since_us > 0 else AlwaysTrue()  # type: ignore
    position, arrival = (raw.schema().find_field(name).field_id for name in (POSITION, ARRIVAL_TS))
    found = []
    for task in raw.scan(row_filter=row_filter).plan_files():
        file = task.file
        first, last, arrival_us = (
            int.from_bytes(bounds[field], "little", signed=True)
            for bounds, field in (
                (file.lower_bounds, position),
                (file.upper_bounds, position),
                (file.upper_bounds, arrival),
            )
        )
        found.append(_File(file.file_path, file.record_count, first, last, arrival_us))
    return sorted(found, key=lambda file: file.path)


def _spread(batches: Iterator[pa.RecordBatch], folder: Path, num_buckets: int, splits: int) -> dict[int, Path]:
    """Write the rows into a file for each part; part % num_buckets is the bucket of its users."""
    folder.mkdir()
    found: dict[int, Path] = {}
    with ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}
        for batch in batches:
            user_B = batch.column(USER).to_numpy()
            part_B = buckets_of(user_B, num_buckets) + num_buckets * (mix64(user_B) % np.uint64(splits)).astype(
                np.int64
            )
            order = np.argsort(part_B, kind="stable")
            starts = np.flatnonzero(np.diff(part_B[order], prepend=-1))
            rows = batch.take(pa.array(order))
            for start, end in zip(starts, [*starts[1:], len(order)]):
                part = int(part_B[order[start]])
                if part not in writers:
                    found[part] = folder / f"{part}.arrow"
                    writers[part] = stack.enter_context(pa.ipc.new_file(str(found[part]), batch.schema))
                writers[part].write(rows.slice(start, end - start))
    return found


def _ipc_batches(path: Path) -> list[pa.RecordBatch]:
    with pa.ipc.open_file(str(path)) as file:
        return [file.get_batch(number) for number in range(file.num_record_batches)]
