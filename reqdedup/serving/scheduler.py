"""One compute thread behind a bounded queue: what waits together is computed together, what comes too late is not.

    submit -> [ queue, at most `max_waiting` requests and `max_waiting_rows` rows ] -> step -> futures

A step takes the oldest request and those behind it that may share its step (an equal `group`: the same model and the
same kind of call), up to `max_step_rows` rows; it never waits for more to come. A request of more rows than that has a
step of its own. The number of rows decides because batching pays for few candidates and costs for many. Nothing is
computed for a request whose deadline passed while it waited, or whose sender has gone.

One thread computes, so nothing behind it needs a lock, and what it replaces (a model) changes between two steps.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


class OverloadedError(RuntimeError):
    """The queue is full, or closed. retry_after_s: when it is worth coming back, whole seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(RuntimeError):
    """The deadline passed before the request's turn: nothing was computed."""


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """max_waiting: requests.  max_waiting_rows: candidates of all that wait.  max_step_rows: candidates of one step,
    if it has several requests."""

    max_waiting: int = 64
    max_waiting_rows: int = 16_384
    max_step_rows: int = 256


@dataclass(kw_only=True)
class Work:
    """One request that waits. run: computes several of one group, an answer or an exception for each.

    deadline: in seconds of `time.monotonic`.  deferred: only if nothing else waits, and dropped instead of refused.
    """

    group: Hashable
    run: Callable[[Sequence[Any]], Sequence[Any]]
    request: Any
    rows: int
    deadline: float = math.inf
    deferred: bool = False
    must_run: bool = False
    submitted: float = field(default_factory=time.monotonic)
    answer: Future[Any] = field(default_factory=Future)


@dataclass(kw_only=True)
class Counts:
    """What happened so far. step_rows, step_requests: of all steps.  busy_s, cpu_s: wall and CPU time inside steps."""

    steps: int = 0
    step_requests: int = 0
    step_rows: int = 0
    refused: int = 0
    expired: int = 0
    abandoned: int = 0
    failed: int = 0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    waited_s: float = 0.0


class Scheduler:
    """The queue and its thread. Use it as a context, or `close` it."""

    def __init__(self, limits: SchedulerLimits | None = None) -> None:
        self.limits = limits or SchedulerLimits()
        self.counts = Counts()
        self._waiting: deque[Work] = deque()
        self._deferred: deque[Work] = deque(maxlen=16)
        self._rows = 0
        self._row_s = 0.0  # a moving average
        self._is_open = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._compute, name="compute", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Future[Any]:
        """The future of its answer. Raises OverloadedError at once if the queue is full or closed."""
        with self._changed:
            if not self._is_open:
                raise OverloadedError("a server that takes requests required, found one that is shutting down", 1)
            if work.deferred:
                self._deferred.append(work)
                self._changed.notify()
                return work.answer
            is_full = len(self._waiting) >= self.limits.max_waiting
            is_full |= len(self._waiting) > 0 and self._rows + work.rows > self.limits.max_waiting_rows
            if is_full and not work.must_run:
                self.counts.refused += 1
                raise OverloadedError(
                    f"a queue of at most {self.limits.max_waiting} requests and {self.limits.max_waiting_rows} "
                    f"candidates required, found {len(self._waiting)} and {self._rows} waiting; come back later",
                    max(1, math.ceil(self._rows * self._row_s)),
                )
            self._waiting.append(work)
            self._rows += work.rows
            self._changed.notify()
        return work.answer

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests and rows in the queue."""
        return len(self._waiting), self._rows

    def close(self, *, drain_s: float = 30.0) -> bool:
        """Take no more, finish what waits for at most `drain_s`, refuse the rest; False if some had to be refused."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join(drain_s)
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
            self._rows = 0
        for work in left:
            if not work.answer.set_running_or_notify_cancel():
                continue
            _settle(work, OverloadedError("the server was shut down before the request's turn", 1))
        return not left and not self._thread.is_alive()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _compute(self) -> None:
        while True:
            with self._changed:
                while self._is_open and not self._waiting and not self._deferred:
                    self._changed.wait()
                if not self._waiting and not self._is_open:
                    return
                step = self._take() if self._waiting else [self._deferred.popleft()]
            self._run(step)

    def _take(self) -> list[Work]:
        first = self._waiting.popleft()
        step, rows, left = [first], first.rows, deque[Work]()
        for work in self._waiting:
            if work.group == first.group and rows + work.rows <= self.limits.max_step_rows:
                step.append(work)
                rows += work.rows
            else:
                left.append(work)
        self._waiting = left
        self._rows -= rows
        return step

    def _run(self, step: list[Work]) -> None:
        started, alive = time.monotonic(), []
        for work in step:
            if not work.answer.set_running_or_notify_cancel():
                self.counts.abandoned += 1
            elif work.deadline < started:
                self.counts.expired += 1
                waited_ms = 1000 * (started - work.submitted)
                _settle(
                    work, DeadlineError(f"a turn before the deadline required, found {waited_ms:.0f} ms of waiting")
                )
            else:
                alive.append(work)
        if not alive:
            return
        cpu_started = time.thread_time()
        try:
            answers: Sequence[Any] = alive[0].run([work.request for work in alive])
            if len(answers) != len(alive):
                raise RuntimeError(f"{len(alive)} answers required, found {len(answers)}")
        except Exception as error:  # of the whole step: alone, each may succeed or say what is wrong with it
            answers = [error] if len(alive) == 1 else [_alone(work) for work in alive]
        rows, took = sum(work.rows for work in alive), time.monotonic() - started
        if not alive[0].deferred:
            self._row_s = 0.9 * self._row_s + 0.1 * took / max(1, rows)
        counts = self.counts
        counts.steps += 1
        counts.step_requests += len(alive)
        counts.step_rows += rows
        counts.busy_s += took
        counts.cpu_s += time.thread_time() - cpu_started
        for work, answer in zip(alive, answers, strict=True):
            counts.waited_s += started - work.submitted
            counts.failed += isinstance(answer, Exception)
            _settle(work, answer)


def _alone(work: Work) -> Any:
    try:
        return work.run([work.request])[0]
    except Exception as error:
        return error


def _settle(work: Work, answer: Any) -> None:
    if isinstance(answer, Exception):
        work.answer.set_exception(answer)
    else:
        work.answer.set_result(answer)
