"""Rows in parts that several processes read, a part each: what the map tasks of a write have for a source.

row groups of files       TableSource, FileSource: neighbouring row groups are a part
files of another table    `convert`: row groups in the order of its files, each rewritten as it is read
a log                     `ingest`: a share of its users each, once tasks of its own have read the log's files

Parts are numbered in the order of the rows, so that the files of a write do not depend on who read what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from reqdedup.distributed import Engine
from reqdedup.schema import EngagementSchema
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.storage.write.exchange import ExchangeFolder

MAP_ROWS = 2**19
"""Rows of a map task, if its row groups allow: some 100 MB of memory, and a second or two."""

MOST_MAPS = 10_000
"""Of one write, from which on they have more rows: each bucket reads a range of every map's file, and the driver knows
them all. More rows than fit in memory go through the task's disk."""


class Parts(Protocol):
    """A source in parts; picklable, as each part is."""

    def parts(self) -> Sequence[Any]:
        """What `of_part` takes, in the order of the rows."""
        ...

    def of_part(self, part: Any, notes: list[Any]) -> Iterator[pa.RecordBatch]:
        """Deduplicated batches of a part. notes: takes what there is to say about it, once it is read."""
        ...


@runtime_checkable
class SplitSource(Protocol):
    """A source that becomes parts by tasks of its own: a log."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """All rows, read by this process alone."""
        ...

    def split_size(self) -> tuple[int, int]:
        """How many tasks these are, and bytes of the files that they read."""
        ...

    def split(self, engine: Engine, folder: ExchangeFolder) -> Parts:
        """The parts. folder: for what tasks leave for others, which goes when the write ends."""
        ...

    def take(self, number: int, notes: list[Any]) -> None:
        """The part of this number was read, with these notes."""
        ...

    def was_read(self) -> None:
        """All parts were. Raises ValueError if the rows must not be written."""
        ...


@dataclass(frozen=True, kw_only=True)
class RowGroups:
    """Files of ours. names: of the columns."""

    source: FileSource
    names: tuple[str, ...]

    def parts(self) -> list[tuple[RowGroup, ...]]:
        return grouped(self.source.row_groups(), lambda group: group.num_rows)

    def of_part(self, part: tuple[RowGroup, ...], notes: list[Any]) -> Iterator[pa.RecordBatch]:
        return self.source.stream(part, list(self.names))


def row_groups_of(source: FileSource, schema: EngagementSchema) -> RowGroups:
    """The parts of a source, with the columns of this schema."""
    return RowGroups(source=source, names=tuple(schema.names))


def grouped(items: Sequence[Any], num_rows: Callable[[Any], int]) -> list[tuple[Any, ...]]:
    """Neighbours together, MAP_ROWS or one of them each, or as many rows as about MOST_MAPS leave to each."""
    most = max(MAP_ROWS, sum(map(num_rows, items)) // MOST_MAPS)
    groups: list[list[Any]] = []
    together = 0
    for item in items:
        if not groups or together + num_rows(item) > most:
            groups.append([])
            together = 0
        groups[-1].append(item)
        together += num_rows(item)
    return [tuple(group) for group in groups]
