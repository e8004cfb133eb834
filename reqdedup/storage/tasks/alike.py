"""Running the tasks of one write, so that all of them encode a column alike, and taking over what they have written.

    the table knows its encodings       all tasks at once
    it does not, or they are renewed    one task alone, which chooses by its first rows; then the others, as it chose

So a bucket's bytes depend on its rows and the table alone, whichever engine writes it, in whatever order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyiceberg.table import Table
from pyiceberg.table.update import SetPropertiesUpdate, TableUpdate

from reqdedup.distributed import Engine
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.datafile import FileSettings
from reqdedup.storage.iceberg.encodings import CHOICES_PROPERTY, to_json
from reqdedup.storage.iceberg.form import preview
from reqdedup.storage.iceberg.layout import table_layout
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.tasks.leftovers import remove_left


@dataclass(frozen=True, kw_only=True)
class BucketTask:
    """A bucket to write, or of a source that is read in fewer units, a unit. num_bytes: stored ones that it reads, as
    many as the others."""

    bucket: int
    write_id: str
    num_bytes: int

    @property
    def name(self) -> str:
        return f"bucket {self.bucket}"


def is_decided(table: Table, schema: EngagementSchema, updates: tuple[TableUpdate, ...] = ()) -> bool:
    """Whether the table, after these updates, knows how each column is encoded."""
    target = preview(table, updates)
    return FileSettings(table_layout(target), schema, target.properties).is_decided


def run_alike(
    engine: Engine, work: Any, tasks: Sequence[Any], lead: int | None
) -> Generator[tuple[int, Written], None, None]:
    """Number and result of each task, as they are done.

    work: with fields `updates`, of the table, and `renew`, whether the task that leads chooses for all columns anew.
    lead: number of the task that goes first; None if nothing is to be chosen.
    """
    waiting = list(range(len(tasks)))
    while lead is not None and waiting:
        waiting.remove(lead)
        choices: dict[str, str] = {}
        with contextlib.closing(engine.run(work, [tasks[lead]])) as first:
            for _, written in first:
                choices = written.choices
                yield lead, written
        lead = None if choices else next(iter(waiting), None)  # of a bucket without rows, the next one leads
        kept = (SetPropertiesUpdate(updates={CHOICES_PROPERTY: to_json(choices)}),) if choices else ()
        work = replace(work, updates=(*work.updates, *kept), renew=work.renew and not choices)
    if waiting:
        with contextlib.closing(engine.run(work, _Picked(tasks, waiting))) as rest:
            for number, written in rest:
                yield waiting[number], written


class _Picked(Sequence[Any]):
    """Some of the tasks, each made when it is asked for."""

    def __init__(self, tasks: Sequence[Any], numbers: Sequence[int]) -> None:
        self._tasks, self._numbers = tasks, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._tasks[self._numbers[index]]


def adopt_all(
    files: StagedFiles,
    work: Any,
    tasks: Sequence[Any],
    engine: Engine,
    *,
    lead: int | None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Written]:
    """Run all tasks of a write that is one commit, whose files `files` then has; what each wrote, in their order.

    progress: called with tasks done. If it fails no file of the write is left; nor one of an attempt that was repeated.
    """
    done: dict[int, Written] = {}
    ended = False
    try:
        for number, written in run_alike(engine, work, tasks, lead):
            files.adopt(written)
            done[number] = written
            progress(len(done))
        ended = True
    finally:
        if not engine.is_here and (not ended or engine.retries):
            kept = [data_file.file_path for data_file in files.data_files] if ended else ()
            remove_left(files.table, [files.write_id], kept)
    return [done[number] for number in sorted(done)]
