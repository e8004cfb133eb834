"""The speed view: what was delivered from the watermark of a batch view on, enriched by the same builder, in memory.

A micro-batch is on disk before it is taken: a file of frames, each with its length and checksum. After a restart the
frames are run again; a torn last one is what a killed process had not confirmed, and is cut off. Positions make a batch
that is delivered twice harmless: events up to the last position are left out.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.arrays.keys import run_starts
from reqdedup.sequences.columns import PLAIN_TEXT, conform, values_of
from reqdedup.sequences.definition import ARRIVAL_TS, EVENT_ID, USER
from reqdedup.sequences.tables import INDEX, POSITION, VERSION
from reqdedup.sequences.timeline_builder import EventCounts, TimelineBuilder

_HEAD = struct.Struct("<II")
_NOT_SERVED = (USER, INDEX, VERSION)


class SpeedView:
    """Events of users since a watermark.

    ends: says where the timelines of users stand there.  recent: events before it that a delivery may repeat.
    position: of the next event to be taken.
    """

    def __init__(
        self,
        builder: TimelineBuilder,
        ends: Callable[[pl.Series, Sequence[str]], pl.DataFrame],
        recent: pl.DataFrame,
        *,
        position: int,
        version: int,
    ) -> None:
        self._builder, self._ends, self._version = builder, ends, version
        self._recent = builder.of_log(recent)
        self.position = position
        self.arrival_us = 0
        self.counts = EventCounts()
        self._of_user: dict[int, dict[str, np.ndarray]] = {}
        self._stands: dict[int, tuple[int, ...]] = {}

    def put(self, events: pl.DataFrame, before: Callable[[], None] = lambda: None) -> int:
        """Take numbered events, as `intake.number_events` makes them; how many of them were not known yet.

        before: called once the builder has made rows of them, and before they are taken. Raises what the builder
        raises, ValueError of an executor for one; then nothing was taken.
        """
        events = events.filter(pl.col(POSITION) >= self.position)
        if not events.height:
            return 0
        events = self._builder.of_log(events)
        rows, counts = self._builder.run(events, self._earlier, self._where, version=self._version)
        before()
        self._add(rows)
        self.counts.add(counts)
        self.position = int(events[POSITION][-1]) + 1
        self.arrival_us = int(events[ARRIVAL_TS].dt.epoch("us")[-1])
        known = pl.concat([self._recent, events])
        self._recent = known.filter(pl.col(ARRIVAL_TS).dt.epoch("us") >= self.arrival_us - self._builder.horizon_us)
        return events.height

    def of_user(self, user_id: int) -> dict[str, np.ndarray] | None:
        """The user's events since the watermark, column by column; None if there are none."""
        return self._of_user.get(user_id)

    def _earlier(self, ids: pl.Series) -> pl.DataFrame:
        return self._recent.filter(pl.col(EVENT_ID).is_in(ids.implode()))

    def _where(self, users: pl.Series) -> pl.DataFrame:
        names = self._builder.rank_columns
        known = [(user, *self._stands[user]) for user in users.to_list() if user in self._stands]
        others = users.filter(~users.is_in([row[0] for row in known]))
        mine = pl.DataFrame(known, schema=self._builder.no_ends().schema, orient="row")
        return pl.concat([mine, self._ends(others, names).select(mine.columns)])

    def _add(self, rows: pl.DataFrame) -> None:
        user_T = rows[USER].to_numpy()
        served = [field for field in self._builder.schema if field.name not in _NOT_SERVED]
        arrow = conform(rows, pa.schema(served))
        columns = {field.name: values_of(arrow.column(field.name)) for field in served}
        index_T = rows[INDEX].to_numpy()
        for start, end in pairwise([*run_starts([user_T]).tolist(), len(user_T)]):
            user = int(user_T[start])
            new = {name: values[start:end] for name, values in columns.items()}
            old = self._of_user.get(user)
            self._of_user[user] = {n: np.concatenate([old[n], new[n]]) for n in new} if old is not None else new
            last = (int(columns[name][end - 1]) for name in self._builder.rank_columns)
            self._stands[user] = (int(index_T[end - 1]) + 1, *last)


class WriteAheadFile:
    """Micro-batches in the order in which they were taken, each on disk before it counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._open()

    def _open(self) -> None:
        self._file = self.path.open("r+b", buffering=0)
        self._num_bytes = sum(length for _, length in _frames(self.path))

    def append(self, events: pl.DataFrame) -> None:
        """Returns once they are on disk. An append that failed, as on a full disk, is cut off by the next one: what
        follows half a frame would never be read again."""
        data = _frame(events)
        self._file.truncate(self._num_bytes)
        self._file.seek(self._num_bytes)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())
        self._num_bytes += len(data)

    def batches(self) -> Iterator[pl.DataFrame]:
        """All micro-batches, oldest first."""
        yield from batches_of(self.path)

    def keep(self, batches: Iterator[pl.DataFrame]) -> None:
        """Replace the file by these micro-batches, in one step."""
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            for events in batches:
                if events.height:
                    file.write(_frame(events))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)
        self._file.close()
        self._open()

    def close(self) -> None:
        self._file.close()


def batches_of(path: Path) -> Iterator[pl.DataFrame]:
    """The micro-batches of a write-ahead file, oldest first; another process may be writing it."""
    for data, _ in _frames(path):
        yield pl.read_ipc(io.BytesIO(data))


def _frames(path: Path) -> Iterator[tuple[bytes, int]]:
    """Contents of the whole frames, and the bytes that each takes; what follows a torn one was never confirmed."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            data = file.read(length)
            if len(data) < length or zlib.crc32(data) != checksum:
                return
            yield data, _HEAD.size + length


def _frame(events: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    events.write_ipc(buffer, compat_level=PLAIN_TEXT)
    data = buffer.getvalue()
    return _HEAD.pack(len(data), zlib.crc32(data)) + data
