"""N processes of this machine, started as `python -m reqdedup.distributed.worker`, and spoken to over socket pairs.

Not by multiprocessing: it imports the caller's main module anew, which a notebook does not have and a script without a
main guard does not survive. A worker begins a task when it has answered the one before, waits for the next run of its
engine, since its imports take longer than many a task, and ends by itself when this process does.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from reqdedup.distributed.attempts import DEADLINE_S, Answer, LostError
from reqdedup.distributed.pooled import Pooled, answer_of
from reqdedup.environment import variables

if TYPE_CHECKING:
    from reqdedup.distributed.engine import Task

WORKER = "reqdedup.distributed.worker"


class Processes(Pooled):
    """Tasks in up to `workers` processes of this machine, which end with this object.

    Raises ValueError for fewer than 1: none would ever begin a task.
    """

    def __init__(self, workers: int, *, deadline_s: float = DEADLINE_S) -> None:
        if workers < 1:
            raise ValueError(f"workers: at least 1 required, found {workers}; engine='inline' needs no process")
        super().__init__(f"processes:{workers}", deadline_s=deadline_s)
        self._most = workers
        self._workers: list[_Worker] = []

    @contextmanager
    def pool(self, work: bytes, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[_Pool]:
        pool = _Pool(min(self._most, len(tasks)), work, tasks, self._workers)
        try:
            yield pool
        finally:
            pool.end_busy()

    def close(self) -> None:
        """End the processes that wait for another run."""
        while self._workers:
            self._workers.pop().end()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()


class _Worker:
    """One process, and the socket to it. attempt: that it is at, None if it waits for one."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a task prints is none of the driver's results
                start_new_session=True,  # Ctrl-C is the driver's, who ends its workers
            )
        self.attempt: int | None = None
        self._work = b""

    def begin(self, attempt: int, work: bytes, task: Task) -> None:
        self.attempt = attempt
        with suppress(OSError):  # it is gone: `answer` will say so
            if self._work is not work:
                self.connection.send_bytes(b"work" + work)
                self._work = work
            self.connection.send_bytes(b"task" + pickle.dumps((attempt, pickle.dumps(task))))

    def answer(self) -> Answer | None:
        """What it has to say; None if it is gone."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            return None
        self.attempt = None
        return answer_of(message)

    def end(self) -> int:
        """Kill it; its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class _Pool:
    """Workers of one run: those that waited for one, and others as they are needed."""

    is_one_machine = True

    def __init__(self, most: int, work: bytes, tasks: Sequence[Task], workers: list[_Worker]) -> None:
        self._most, self._work, self._tasks, self._workers = most, work, tasks, workers

    def num_free(self) -> int:
        return self._most - sum(worker.attempt is not None for worker in self._workers)

    def may_take(self, number: int) -> bool:
        return True

    def begin(self, attempt: int, number: int, memory: int) -> None:
        idle = next((worker for worker in self._workers if worker.attempt is None), None)
        if idle is None:
            idle = _Worker()
            self._workers.append(idle)
        idle.begin(attempt, self._work, self._tasks[number])

    def answers(self, timeout_s: float) -> list[Answer]:
        by_connection = {worker.connection: worker for worker in self._workers}
        found = []
        for connection in wait(list(by_connection), timeout_s):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            answer = worker.answer()
            if answer is None:
                self._workers.remove(worker)
                attempt, status = worker.attempt, worker.end()
                if attempt is None:
                    continue
                error = LostError(f"a worker process ended with status {status} before it answered")
                answer = Answer(attempt=attempt, error=error)
            found.append(answer)
        return found

    def overdue(self, attempt: int) -> None:
        for worker in [worker for worker in self._workers if worker.attempt == attempt]:
            self._workers.remove(worker)
            worker.end()

    def end_busy(self) -> None:
        for worker in [worker for worker in self._workers if worker.attempt is not None]:
            self._workers.remove(worker)
            worker.end()


def _environment() -> dict[str, str]:
    """Of a worker: it finds the modules that this process finds, and decodes on one core."""
    own = dict(variables())
    here = [str(Path(__file__).parents[2]), *(path or os.getcwd() for path in sys.path)]
    return {"OMP_NUM_THREADS": "1", **own, "PYTHONPATH": os.pathsep.join(dict.fromkeys(here))}
