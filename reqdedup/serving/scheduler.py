"""One compute thread behind a bounded queue: what waits together is computed together, what comes too late is not.

    submit -> [ queue, at most about `max_wait_ms` long, `max_waiting` requests, `max_waiting_rows` rows ] -> step

A step takes the oldest request and those behind it that may share its step (an equal `group`: the same model and the
same kind of call), up to `max_step_rows` rows; it never waits for more to come. A request of more rows than that has a
step of its own. The number of rows decides because batching pays for few candidates and costs for many. Nothing is
computed for a request whose deadline passed while it waited, or whose sender has gone.

One thread computes, so nothing behind it needs a lock, and what it replaces (a model) changes between two steps.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol


class OverloadedError(RuntimeError):
    """The queue is full, or closed. retry_after_s: when it is worth coming back, whole seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(OverloadedError):
    """The queue is full."""


class DeadlineError(RuntimeError):
    """The deadline passed before the request's turn: nothing was computed."""


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """max_wait_ms: what a request may have to wait for its turn, as expected when it comes.  max_waiting: requests.
    max_waiting_rows: candidates of all that wait.
    max_step_rows: candidates of one step, if it has several requests: five of 100 (decision 38). Requests that are not
    computed together have a step each.
    """

    max_wait_ms: float = 100.0
    max_waiting: int = 64
    max_waiting_rows: int = 16_384
    max_step_rows: int = 512


class Answer(Protocol):
    """Where a step puts an answer: a `concurrent.futures.Future`, or lighter."""

    def set_running_or_notify_cancel(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class LoopAnswer:
    """One for a coroutine, which awaits `future`: cheaper than a concurrent future and one that is chained to it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def set_running_or_notify_cancel(self) -> bool:
        return not self.future.cancelled()

    def set_result(self, result: Any, /) -> None:
        self._call(self.future.set_result, result)

    def set_exception(self, exception: BaseException, /) -> None:
        self._call(self.future.set_exception, exception)

    def _call(self, settle: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it who waited
            self._loop.call_soon_threadsafe(lambda: None if self.future.done() else settle(value))


@dataclass(kw_only=True)
class Work:
    """One request that waits. run: computes several of one group, an answer or an exception for each.

    deadline, submitted: in seconds of `time.monotonic`.  deferred: only if nothing else waits, and dropped instead of
    refused.  must_run: whatever waits, unless the queue is closed.
    """

    group: Hashable
    run: Callable[[Sequence[Any]], Sequence[Any]]
    request: Any
    rows: int
    deadline: float = math.inf
    deferred: bool = False
    must_run: bool = False
    submitted: float = field(default_factory=time.monotonic)
    answer: Answer = field(default_factory=Future)


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


class Cost:
    """What steps cost lately: seconds = of a request x requests + of a row x rows, by least squares over about the last
    fifty steps. Requests that all have as many rows cannot tell the two apart: rows have it all then.

    requests, rows: of those that wait.
    """

    def __init__(self) -> None:
        self.requests = self.rows = 0
        self.request_s = self.row_s = 0.0
        self._sums: tuple[float, ...] = (0.0,) * 5

    def add(self, requests: int, rows: int, seconds: float) -> None:
        """One step."""
        rows = max(1, rows)
        new = (requests * requests, requests * rows, rows * rows, requests * seconds, rows * seconds)
        self._sums = qq, qr, rr, qs, rs = tuple(0.98 * old + one for old, one in zip(self._sums, new, strict=True))
        determinant = qq * rr - qr * qr
        if determinant < 1e-6 * qq * rr:
            self.request_s, self.row_s = 0.0, rs / rr
            return
        self.request_s, self.row_s = (rr * qs - qr * rs) / determinant, (qq * rs - qr * qs) / determinant
        if self.request_s < 0:
            self.request_s, self.row_s = 0.0, rs / rr
        elif self.row_s < 0:
            self.request_s, self.row_s = qs / qq, 0.0

    def of(self, requests: int, rows: int) -> float:
        """Seconds that these are expected to take."""
        return self.request_s * requests + self.row_s * max(requests, rows)


class Scheduler:
    """The queue and its thread. Use it as a context, or `close` it."""

    def __init__(self, limits: SchedulerLimits | None = None) -> None:
        self.limits = limits or SchedulerLimits()
        self.counts = Counts()
        self._waiting: deque[Work] = deque()
        self._deferred: deque[Work] = deque(maxlen=16)
        self._rows = 0
        self._costs: dict[type, Cost] = {}
        self._step_ends = -math.inf  # as expected, of the step that runs
        self._is_open = True
        self._lock = threading.Lock()
        self._has_work, self._sleeps = threading.Lock(), False  # cheaper than a condition, and one thread waits at most
        self._has_work.acquire()
        self._thread = threading.Thread(target=self._compute, name="compute", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Any:
        """Its `answer`. Raises OverloadedError at once if the queue is full or closed."""
        with self._lock:
            if not self._is_open:
                raise OverloadedError("a server that takes requests required, found one that is shutting down", 1)
            if work.deferred:
                self._deferred.append(work)
                self._wake()
                return work.answer
            if not work.must_run:
                self._refuse(work.rows)
            self._waiting.append(work)
            self._count(work, 1)
            self._wake()
        return work.answer

    def refuse_if_full(self) -> None:
        """Raises OverloadedError as `submit` would, before a request was read."""
        with self._lock:
            self._refuse(1)

    def _refuse(self, rows: int) -> None:
        """A request of so many rows, if the queue is full."""
        limits, waiting = self.limits, len(self._waiting)
        if not waiting:
            return
        wait_s = self.wait_s
        is_full = waiting >= limits.max_waiting or self._rows + rows > limits.max_waiting_rows
        if not is_full and 1000 * wait_s <= limits.max_wait_ms:
            return
        self.counts.refused += 1
        raise QueueFullError(
            f"a queue of at most {limits.max_wait_ms:g} ms, {limits.max_waiting} requests and "
            f"{limits.max_waiting_rows} candidates required, found {1000 * wait_s:.0f}, {waiting} and {self._rows} "
            "waiting; come back later",
            max(1, math.ceil(wait_s - limits.max_wait_ms / 1000)),
        )

    @property
    def wait_s(self) -> float:
        """What a request that comes now has to wait for its turn, as expected [seconds]."""
        waiting_s = sum(cost.of(cost.requests, cost.rows) for cost in tuple(self._costs.values()))
        return waiting_s + max(0.0, self._step_ends - time.monotonic())

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests and rows in the queue."""
        return len(self._waiting), self._rows

    def close(self, *, drain_s: float = 30.0) -> bool:
        """Take no more, finish what waits for at most `drain_s`, refuse the rest; False if some had to be refused."""
        with self._lock:
            self._is_open = False
            self._wake()
        self._thread.join(drain_s)
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
            for work in left:
                self._count(work, -1)
        for work in left:
            if not work.answer.set_running_or_notify_cancel():
                continue
            _settle(work, OverloadedError("the server was shut down before the request's turn", 1))
        return not left and not self._thread.is_alive()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wake(self) -> None:
        """The compute thread, with the lock held."""
        if self._sleeps:
            self._sleeps = False
            self._has_work.release()

    def _compute(self) -> None:
        while True:
            with self._lock:
                if not self._waiting and not self._is_open:
                    return
                step = self._take() if self._waiting else [self._deferred.popleft()] if self._deferred else []
                self._sleeps = not step
            if step:
                self._run(step)
            else:
                self._has_work.acquire()

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
        for work in step:
            self._count(work, -1)
        return step

    def _count(self, work: Work, sign: int) -> None:
        """One more, or less, that waits."""
        cost = self._costs.setdefault(type(work.request), Cost())
        cost.requests += sign
        cost.rows += sign * work.rows
        self._rows += sign * work.rows

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
        rows, cost = sum(work.rows for work in alive), self._costs.setdefault(type(alive[0].request), Cost())
        self._step_ends = started + cost.of(len(alive), rows)
        cpu_started = time.thread_time()
        try:
            answers: Sequence[Any] = alive[0].run([work.request for work in alive])
            if len(answers) != len(alive):
                raise RuntimeError(f"{len(alive)} answers required, found {len(answers)}")
        except Exception as error:  # of the whole step: alone, each may succeed or say what is wrong with it
            answers = [error] if len(alive) == 1 else [_alone(work) for work in alive]
        took = time.monotonic() - started
        if not (alive[0].deferred or alive[0].must_run):
            cost.add(len(alive), rows, took)
        self._step_ends = -math.inf
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
