"""What an engine is, the one that is this process, and which one a name means."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Generator, Sequence
from typing import Any, Protocol

from reqdedup.distributed.attempts import DEADLINE_S, NOT_COMMITTED
from reqdedup.distributed.processes import Processes
from reqdedup.distributed.totals import count_done
from reqdedup.environment import DEADLINE_VARIABLE, ENGINE_VARIABLE, variables

NAMES = "inline, processes, processes:N, ray or ray:HOST:PORT"

RAY_ADDRESS = re.compile(r"[^\s/@]+:\d{1,5}")
"""HOST:PORT of the head of a cluster."""

PAYS_BYTES = 2**30
"""Of stored files that an operation reads, from which on it runs on all cores if nobody says otherwise."""

SHUFFLE_PAYS_FROM = 4
"""Cores: rows that are exchanged between tasks take more CPU than one process does, and gain in wall time alone."""


class Task(Protocol):
    """One part of an operation: small, and the same wherever and however often it runs. name: for people.

    A task may have `num_bytes` too, the stored bytes that it reads: they give it its time and its memory.
    """

    @property
    def name(self) -> str: ...


class Work(Protocol):
    """What the tasks of one operation share; a process gets it once."""

    def run(self, task: Any) -> Any:
        """Do one task, without looking at any other; what it says must fit into the driver's memory.

        What it says may have `num_bytes`, of the files that it wrote, for the `totals`.
        """
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
            try:
                result = work.run(task)
            except Exception as error:
                error.add_note(f"in {task.name}; {NOT_COMMITTED}")
                raise
            count_done(result, self.name)
            yield number, result


def engine_for(
    engine: str | Engine | None, work: Work | None, *, num_tasks: int, num_bytes: int = 0, pays_from: int = 2
) -> Engine:
    """The engine that is meant, for this work.

    engine: its name, one that was made, or None: what REQDEDUP_ENGINE names, else all cores for a large job and this
        process for a small one, or one that cannot be pickled.
    num_tasks, num_bytes: of the job; stored bytes that it reads.
    pays_from: number of cores; SHUFFLE_PAYS_FROM for tasks that exchange their rows.
    Raises ValueError for an unknown name.
    """
    if engine is not None and not isinstance(engine, str):
        return engine
    named = engine or variables().get(ENGINE_VARIABLE, "")
    if named:
        return named_engine(named)
    cores = num_cores()
    if cores < pays_from or num_tasks < 2 or num_bytes < PAYS_BYTES:
        return Inline()
    try:
        pickle.dumps(work)
    except Exception:
        return Inline()
    return Processes(min(cores, num_tasks), deadline_s=deadline_s())


def named_engine(name: str) -> Engine:
    """The engine of this name, which meets its processes or its cluster when it runs. Raises ValueError for any other
    name, and for `ray` if it is not installed."""
    kind, _, rest = name.partition(":")
    if name == Inline.name:
        return Inline()
    if kind == "processes" and (name == kind or (rest.isascii() and rest.isdigit() and int(rest) > 0)):
        return Processes(int(rest) if rest else num_cores(), deadline_s=deadline_s())
    if kind == "ray" and (name == kind or RAY_ADDRESS.fullmatch(rest)):
        try:
            from reqdedup.distributed.ray import Ray
        except ModuleNotFoundError as error:
            raise ValueError(
                f"engine {name}: the extra `ray` required (pip install 'reqdedup[ray]'), found no {error.name}; on one "
                "machine engine='processes' needs nothing more"
            ) from None
        return Ray(rest, deadline_s=deadline_s())
    client = "; Ray Client (ray://) carries no tasks of ours: name the head's own port" if rest.startswith("//") else ""
    raise ValueError(f"engine: {NAMES} required, found {name!r}{client}")


def deadline_s() -> float:
    """Seconds that a task has before it runs again elsewhere: of REQDEDUP_DEADLINE_S, else the default."""
    said = variables().get(DEADLINE_VARIABLE, "")
    try:
        seconds = float(said) if said else DEADLINE_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{DEADLINE_VARIABLE}: seconds above 0 required, found {said!r}")
    return seconds


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
