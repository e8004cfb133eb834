"""Commits of groups of buckets: each as soon as its last task is done, so that a run that ends early keeps the others.

    group 0   buckets 0-31     task task task ... -> commit        one snapshot, the manifests of 32 buckets
    group 1   buckets 32-63         task task ...     -> commit

A commit costs what its manifests list, and no two groups share more than one. A bucket that another writer has changed
meanwhile is left out of its group's commit and handed back, for a new plan.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.distributed import Engine
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.errors import ConflictError, IntegrityError
from reqdedup.storage.iceberg.evolve import MAIN
from reqdedup.storage.iceberg.manifests import listed
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.tasks.alike import run_alike
from reqdedup.storage.tasks.leftovers import remove_files, remove_left

BUCKETS_TOGETHER, BYTES_TOGETHER = 32, 2**30
"""Of a commit, at most: buckets, and bytes of the files that they replace: what a killed run has to do again."""


@dataclass(frozen=True)
class Part:
    """A task and the files that what it writes takes the place of; num_rows: that it must write, None if any.

    task: a dataclass with `name`, and `write_id` and `num_bytes`, which `groups_of` says.
    """

    task: Any
    removed: tuple[DataFile, ...]
    num_rows: int | None = None

    @property
    def num_bytes(self) -> int:
        return sum(file.file_size_in_bytes for file in self.removed)


@dataclass(frozen=True)
class Landed:
    """A group after its commit. parts: committed, with what was written for each.  stale: those whose files another
    writer has replaced, to be planned anew.  snapshot_id: None if nothing was committed."""

    parts: list[Part]
    written: list[Written]
    stale: list[Part]
    snapshot_id: int | None


def groups_of(parts: Sequence[Part], *, together: bool = False) -> list[list[Part]]:
    """The parts in groups of neighbours; their tasks learn the write id of the group, and what they read (`num_bytes`).

    together: one group of all.
    """
    groups: list[list[Part]] = []
    num_bytes = 0
    for part in parts:
        num_bytes += part.num_bytes
        full = bool(groups) and (len(groups[-1]) >= BUCKETS_TOGETHER or num_bytes > BYTES_TOGETHER)
        if not groups or (full and not together):
            groups.append([])
            num_bytes = part.num_bytes
        groups[-1].append(part)
    for group in groups:
        write_id = uuid.uuid4().hex
        group[:] = [
            replace(part, task=replace(part.task, write_id=write_id, num_bytes=part.num_bytes)) for part in group
        ]
    return groups


class GroupCommits:
    """What commits have in common. properties: of each snapshot, from what is committed.

    schema: of the files.  updates: that each commit makes with them.  branch: where.
    """

    def __init__(
        self,
        table: Table,
        schema: EngagementSchema,
        updates: tuple[TableUpdate, ...] = (),
        *,
        properties: Callable[[Sequence[tuple[Part, Written]]], dict[str, str]],
        branch: str = MAIN,
    ) -> None:
        self._table, self._schema, self._updates = table, schema, updates
        self._properties, self._branch = properties, branch
        self._open: set[str] = set()
        self._kept: set[str] = set()

    def run(
        self,
        work: Any,
        groups: Sequence[Sequence[Part]],
        engine: Engine,
        *,
        lead: int | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> Iterator[Landed]:
        """Run the tasks of all groups and commit each group. lead: see `run_alike`.  progress: called after each task.

        Raises what a task raises: groups before are committed, of the others no file is left.
        """
        parts = [part for group in groups for part in group]
        group_of = [number for number, group in enumerate(groups) for _ in group]
        done: dict[int, dict[int, Written]] = defaultdict(dict)
        self._open, self._kept = {group[0].task.write_id for group in groups}, set()
        ended = False
        try:
            with contextlib.closing(run_alike(engine, work, [part.task for part in parts], lead)) as answers:
                for number, written in answers:
                    of_group = done[group_of[number]]
                    of_group[number] = written
                    progress()
                    if len(of_group) == len(groups[group_of[number]]):
                        together = [(parts[at], of_group[at]) for at in sorted(of_group)]
                        del done[group_of[number]]
                        yield self._commit(together[0][1].write_id, together)
            ended = True
        finally:
            if not engine.is_here and (not ended or engine.retries):
                remove_left(self._table, self._open, self._kept)
            else:
                waiting = (written for of_group in done.values() for written in of_group.values())
                remove_files(self._table, (file.file_path for written in waiting for file, _ in written.files))

    def _commit(self, write_id: str, together: list[tuple[Part, Written]]) -> Landed:
        stale: list[Part] = []
        self._open.discard(write_id)  # until it is known which of its files are the table's
        with StagedFiles(self._table, self._schema, self._updates, write_id=write_id) as files:
            for _, written in together:
                files.adopt(written)
            for part, written in together:
                self._check(part, written)
            while together:
                removed = [file for part, _ in together for file in part.removed]
                try:
                    snapshot_id = files.commit(
                        replace=True,
                        removed=removed,
                        rebase=True,
                        properties=self._properties(together),
                        branch=self._branch,
                    )
                except ConflictError:
                    there = listed(self._table, self._table.metadata.snapshot_by_name(self._branch), removed)
                    gone = [part for part, _ in together if not _all_in(part, there)] or [part for part, _ in together]
                    stale += gone
                    files.give_up({partition for part, one in together if part in gone for _, partition in one.files})
                    together = [(part, one) for part, one in together if part not in gone]
                    continue
                self._kept |= {file.file_path for file in files.data_files}
                self._open.add(write_id)
                return Landed([part for part, _ in together], [one for _, one in together], stale, snapshot_id)
        self._open.add(write_id)
        return Landed([], [], stale, None)

    def _check(self, part: Part, written: Written) -> None:
        """The gate: what came out is what went in, and what was planned."""
        if written.rows != written.checksum.rows or part.num_rows not in (None, written.rows):
            raise IntegrityError(
                f"{'.'.join(self._table.name())}: {part.num_rows or written.checksum.rows:,} rows required of "
                f"{part.task.name}, found {written.rows:,}; nothing was committed. This is a defect of the reader or "
                "the writer: report it"
            )


def _all_in(part: Part, paths: set[str]) -> bool:
    return all(file.file_path in paths for file in part.removed)
