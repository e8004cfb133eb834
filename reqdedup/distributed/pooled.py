"""What engines have in common whose tasks run elsewhere: pickled work, deadlines and repetitions, an end for all."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from reqdedup.distributed.attempts import DEADLINE_S, Answer, Pool, run_attempts

if TYPE_CHECKING:
    from reqdedup.distributed.engine import Task, Work


class WorkerTracebackError(Exception):
    """Where in its own process a task failed; cause of what it raised."""


class Pooled(ABC):
    """An engine over a pool of attempts. deadline_s: of a task, see `attempts`."""

    is_here = False

    def __init__(self, name: str, *, deadline_s: float = DEADLINE_S) -> None:
        self.name, self.retries, self._deadline_s = name, 0, deadline_s

    def run(self, work: Work, tasks: Sequence[Task]) -> Generator[tuple[int, Any], None, None]:
        names, sizes = [], []
        for task in tasks:  # one after the other: all of a write at once may be large
            names.append(task.name)
            sizes.append(getattr(task, "num_bytes", 0))
        with self.pool(self._pickled(work), tasks, sizes) as pool:
            yield from run_attempts(
                pool,
                names,
                sizes=sizes,
                engine=self.name,
                deadline_s=self._deadline_s,
                on_retry=self._count,
            )

    @abstractmethod
    def pool(self, work: bytes, tasks: Sequence[Task], sizes: Sequence[int]) -> AbstractContextManager[Pool]:
        """Where the attempts of one run go; its end ends those that still run."""

    def _count(self) -> None:
        self.retries += 1

    def _pickled(self, work: Work) -> bytes:
        try:
            return pickle.dumps(work)
        except ValueError:  # a table whose keys its catalog alone has, which says so itself
            raise
        except Exception as error:
            raise ValueError(
                f"engine {self.name}: work that another process can load required, found {error}; a function must be "
                "one of an importable module (no lambda, none of a notebook or of the script itself). Or "
                "engine='inline'"
            ) from error


def answer_of(message: bytes) -> Answer:
    """What `worker.told` said, with the other process's traceback as cause of an error."""
    attempt, result, error, traceback = pickle.loads(message)
    if error is not None:
        error.__cause__ = WorkerTracebackError(traceback)
    return Answer(attempt=attempt, result=result, error=error)
