"""What an engine is, the one that is this process, and which one a name means."""

from __future__ import annotations

import os
import pickle
from collections.abc import Generator, Sequence
from typing import Any, Protocol

from reqdedup.distributed.processes import Processes
from reqdedup.environment import ENGINE_VARIABLE, variables

NAMES = "inline, processes or processes:N"

PAYS_BYTES = 2**30
"""Of stored files that an operation reads, from which on it runs on all cores if nobody says otherwise."""


class Task(Protocol):
    """One part of an operation: small, and the same wherever and however often it runs. name: for people."""

    @property
    def name(self) -> str: ...


class Work(Protocol):
    """What the tasks of one operation share; a process gets it once."""

    def run(self, task: Any) -> Any:
        """Do one task, without looking at any other; what it says must fit into the driver's memory."""
        ...


class Engine(Protocol):
    """Runs tasks.

    name: as it is asked for.  is_here: whether tasks run in this process and one after the other, on the caller's own
    objects; else they are pickled, and one that failed, or ran twice, may have left files.
    retries: attempts so far beyond one per task.
    """

    name: str
    is_here: bool
    retries: int

    def run(self, work: Work, tasks: Sequence[Task]) -> Generator[tuple[int, Any], None, None]:
        """Number and result of each task, as they are done. Closing the iterator ends what still runs.

        Raises what a task raises, with its name in a note; OSError and lost processes only after repetitions.
        """
        ...


class Inline:
    """Tasks one after the other in this process."""

    name, is_here, retries = "inline", True, 0

    def run(self, work: Work, tasks: Sequence[Task]) -> Generator[tuple[int, Any], None, None]:
        for number, task in enumerate(tasks):
            yield number, work.run(task)


def engine_for(engine: str | Engine | None, work: Work | None, *, num_tasks: int, num_bytes: int = 0) -> Engine:
    """The engine that is meant, for this work.

    engine: its name, one that was made, or None: what REQDEDUP_ENGINE names, else all cores for a large job and this
        process for a small one, or one that cannot be pickled.
    num_tasks, num_bytes: of the job; stored bytes that it reads.
    Raises ValueError for an unknown name.
    """
    if engine is not None and not isinstance(engine, str):
        return engine
    named = engine or variables().get(ENGINE_VARIABLE, "")
    if named:
        return named_engine(named)
    cores = num_cores()
    if cores < 2 or num_tasks < 2 or num_bytes < PAYS_BYTES:
        return Inline()
    try:
        pickle.dumps(work)
    except Exception:
        return Inline()
    return Processes(min(cores, num_tasks))


def named_engine(name: str) -> Engine:
    """The engine of this name. Raises ValueError for any other name."""
    kind, _, number = name.partition(":")
    if name == Inline.name:
        return Inline()
    if kind == "processes" and (name == kind or (number.isascii() and number.isdigit() and int(number) > 0)):
        return Processes(int(number) if number else num_cores())
    raise ValueError(f"engine: {NAMES} required, found {name!r}")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
