"""Which task runs again, and when all have ended: the rule of every engine whose tasks may fail, stall or be lost.

    an error of its own (ValueError, ...)   no repetition: raised as it is, the task named in a note
    OSError                                 again
    MemoryError, a process that was killed  again, alone, so that it has the machine's memory for itself
    no answer by the deadline               again, elsewhere; the first answer counts

At most ATTEMPTS of a task, then the run ends with an error. The deadlines are ours: a cluster that lost a node by a cut
link may wait for it for ever.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ATTEMPTS = 3
"""Of one task, before the run ends with an error."""

DEADLINE_S = 1_800.0
"""Seconds after which a task without an answer runs again elsewhere."""

LONGEST_WAIT_S = 60.0


class LostError(RuntimeError):
    """The process of a task ended without an answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Of one attempt. error: what it raised; None if it did not."""

    attempt: int
    result: Any = None
    error: BaseException | None = None


class Pool(Protocol):
    """Where attempts run."""

    def num_free(self) -> int:
        """Attempts that can begin now."""
        ...

    def begin(self, attempt: int, number: int) -> None:
        """Start an attempt of the task with this number."""
        ...

    def answers(self, timeout_s: float) -> Sequence[Answer]:
        """What attempts say, as soon as one does; none after `timeout_s`."""
        ...

    def overdue(self, attempt: int) -> None:
        """Nobody waits for this attempt any more: it may be ended, and may answer all the same."""
        ...


def run_attempts(
    pool: Pool,
    names: Sequence[str],
    *,
    deadline_s: float = DEADLINE_S,
    attempts: int = ATTEMPTS,
    on_retry: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, Any]]:
    """Number and result of every task, each once, as they are done. names: of the tasks, for errors."""
    run = _Run(pool, names, deadline_s, attempts, on_retry, clock)
    while len(run.done) < len(names):
        run.begin()
        for answer in pool.answers(run.patience_s()):
            number = run.answered(answer)
            if number is not None:
                yield number, answer.result
        run.look_at_deadlines()


class _Run:
    """State of a run. waiting: tasks to begin.  alone: those that need the machine for themselves."""

    def __init__(
        self,
        pool: Pool,
        names: Sequence[str],
        deadline_s: float,
        attempts: int,
        on_retry: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._pool, self._names, self._deadline_s, self._most = pool, names, deadline_s, attempts
        self._on_retry, self._clock = on_retry, clock
        self.done: set[int] = set()
        self._waiting, self._alone = deque(range(len(names))), deque[int]()
        self._tries: Counter[int] = Counter()
        self._numbers = itertools.count()
        self._begun: dict[int, tuple[int, float]] = {}  # attempt -> its task, and when it is overdue
        self._late: dict[int, int] = {}  # attempts that were overdue, whose tasks run again
        self._is_alone = False

    def begin(self) -> None:
        while self._waiting and self._pool.num_free() and not self._is_alone:
            self._begin(self._waiting.popleft())
        if self._alone and not self._waiting and not self._begun and self._pool.num_free():
            self._is_alone = True
            self._begin(self._alone.popleft())

    def _begin(self, number: int) -> None:
        if number in self.done:  # a late attempt was faster
            return
        attempt = next(self._numbers)
        self._tries[number] += 1
        self._begun[attempt] = (number, self._clock() + self._deadline_s)
        self._pool.begin(attempt, number)

    def patience_s(self) -> float:
        """Until the next attempt is overdue."""
        soonest = min((due for _, due in self._begun.values()), default=math.inf)
        return min(max(soonest - self._clock(), 0), LONGEST_WAIT_S)

    def answered(self, answer: Answer) -> int | None:
        """The number of the task whose result this is; None if it is no result, or not the first."""
        is_late = answer.attempt in self._late
        known = self._late.pop(answer.attempt, None) if is_late else self._begun.pop(answer.attempt, (None, 0.0))[0]
        self._is_alone = self._is_alone and bool(self._begun)
        if known is None or known in self.done:
            return None
        if answer.error is None:
            self.done.add(known)
            return known
        if not is_late:  # of one that is late, another attempt runs
            self._again(known, answer.error)
        return None

    def _again(self, number: int, error: BaseException) -> None:
        takes_memory = isinstance(error, MemoryError | LostError)
        if not (takes_memory or isinstance(error, OSError)) or self._tries[number] >= self._most:
            if takes_memory:
                error.add_note(
                    "If that was for memory: fewer processes (engine='processes:1'), or more buckets (rebucket), take "
                    "less of it"
                )
            error.add_note(f"in {self._names[number]}, attempt {self._tries[number]}; nothing of it was committed")
            raise error
        self._on_retry()
        (self._alone if takes_memory else self._waiting).append(number)

    def look_at_deadlines(self) -> None:
        now = self._clock()
        for attempt, (number, due) in list(self._begun.items()):
            if due > now:
                continue
            del self._begun[attempt]
            self._is_alone = self._is_alone and bool(self._begun)
            self._pool.overdue(attempt)
            if number in self.done:
                continue
            self._late[attempt] = number
            if self._tries[number] >= self._most:
                raise TimeoutError(
                    f"{self._names[number]}: an answer within {self._deadline_s:,.0f} s required, found none of "
                    f"{self._most} attempts; nothing of it was committed. Give it more time, or look at what holds "
                    "the storage up"
                )
            self._on_retry()
            self._waiting.append(number)
