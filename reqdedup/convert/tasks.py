"""A conversion by several processes: each reads parts of the source, as the map tasks of a write.

    sessions, keys of items     a task per part; this process puts them together, and has the vocabulary give the ids
    rows                        a map task per part, which converts it; then a task per bucket (`storage.tasks.shuffle`)
    the check                   a map task's own values, or for an Iceberg table a task per file reads it independently

Dense ids are given once, by this process, before any row is read: so they depend on the keys alone. Each process then
has the ids of all keys, and the sessions of all users.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from reqdedup.convert.mapping import ColumnMapping, TargetColumn
from reqdedup.convert.rows import Converter
from reqdedup.convert.sessions import Sessions, find_sessions
from reqdedup.convert.text_ids import item_keys
from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.distributed import Engine
from reqdedup.logs.ids import ItemKeys
from reqdedup.storage.foreign.source import RowSource, Stretch

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """A part of the source to read for something. what: that is looked for."""

    what: str
    number: int
    part: Any

    @property
    def name(self) -> str:
        return f"{self.what} {self.number}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the tasks share that look for sessions, or for keys of items."""

    source: RowSource
    mapping: ColumnMapping
    columns: tuple[TargetColumn, ...]
    converter: Converter

    def run(self, task: PartTask) -> Sessions | ItemKeys:
        if task.what == "keys":
            return item_keys(self.source, self.columns, task.part)
        return find_sessions(self.source, self.mapping, self.converter.times_us, _quietly, task.part)


@dataclass(frozen=True, kw_only=True)
class Checking:
    """What the tasks share that read the source independently."""

    converter: Converter

    def run(self, task: PartTask) -> ContentChecksum:
        own = self.converter.fresh()
        for _ in own.read_independently(task.part):
            pass
        return own.checksum.so_far


@dataclass(frozen=True, kw_only=True)
class ConvertedParts:
    """The converted rows in parts, for the map tasks of a write. Notes: what was read."""

    converter: Converter

    def parts(self) -> Sequence[Any]:
        return self.converter.source.parts()

    def of_part(self, part: Sequence[Stretch], notes: list[Any]) -> Iterator[pa.RecordBatch]:
        own = self.converter.fresh()
        yield from own.batches(part)
        notes.append(own.counted())


def sessions_by(engine: Engine, converter: Converter, mapping: ColumnMapping, progress: Progress) -> Sessions:
    """`find_sessions` of all parts."""
    found = Sessions(round((mapping.session_gap_s or 0) * 1e6))
    for one in _found("sessions", engine, converter, mapping, progress):
        found.absorb(one)
    found.finish()
    return found


def keys_by(engine: Engine, converter: Converter, mapping: ColumnMapping, progress: Progress) -> ItemKeys:
    """`item_keys` of all parts."""
    keys = ItemKeys()
    for one in _found("keys", engine, converter, mapping, progress):
        keys.absorb(one)
    return keys


def check_independently(engine: Engine, converter: Converter, progress: Progress) -> None:
    """`Converter.read_independently` of all files."""
    if converter.source.independent_reader is None:
        return
    tasks = [PartTask(what="file", number=one, part=one) for one in converter.source.independent_parts()]
    with contextlib.closing(engine.run(Checking(converter=converter.fresh()), tasks)) as answers:
        for _, checksum in answers:
            converter.checksum.take(checksum)
            progress("verify", converter.checksum.so_far.rows, converter.num_rows)


def _found(
    what: str, engine: Engine, converter: Converter, mapping: ColumnMapping, progress: Progress
) -> Iterator[Any]:
    source = converter.source
    work = Finding(source=source, mapping=mapping, columns=converter.columns, converter=converter.fresh())
    tasks = [PartTask(what=what, number=number, part=part) for number, part in enumerate(source.parts())]
    done = 0
    with contextlib.closing(engine.run(work, tasks)) as answers:
        for number, found in answers:
            yield found
            done += sum(one.num_rows for one in tasks[number].part)
            progress("sessions", done, source.num_rows) if what == "sessions" else None


def _quietly(phase: str, done: int, total: int) -> None:
    """Nobody looks at a task's progress."""
