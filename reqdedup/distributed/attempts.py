"""Which task runs again, and when all have ended: the rule of every engine whose tasks may fail, stall or be lost.

    an error of its own (ValueError, ...)   no repetition: raised as it is, the task named in a note
    OSError                                 again
    MemoryError                             once more, with twice the memory
    a process or node that is gone          again, elsewhere
    no answer by the deadline               again, elsewhere; the first answer counts

At most ATTEMPTS of a task, then the run ends with an error. The deadlines are ours: a cluster that lost a node by a cut
link may wait for it for ever. On one machine, what needs more memory, or was killed and so may need it, runs alone.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reqdedup.distributed.totals import count_done, count_retry

ATTEMPTS = 3
"""Of one task, before the run ends with an error."""

DEADLINE_S = 1_800.0
"""Seconds after which a task without an answer runs again elsewhere, if it reads no more than that needs."""

SLOWEST_BYTES_PER_S = 1e6
"""Of stored bytes that a task reads and writes again: some ten times slower than measured, for slow storage."""

LONGEST_WAIT_S = 60.0
"""Between two looks at the deadlines."""

NOT_COMMITTED = "nothing of it was committed"
"""Of a task that failed."""


class LostError(RuntimeError):
    """The process, or the node, of a task ended without an answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Of one attempt. error: what it raised; None if it did not."""

    attempt: int
    result: Any = None
    error: BaseException | None = None


class Pool(Protocol):
    """Where attempts run. is_one_machine: whether all of them share one machine's memory."""

    @property
    def is_one_machine(self) -> bool: ...

    def num_free(self) -> int:
        """Attempts that can begin now."""
        ...

    def may_take(self, number: int) -> bool:
        """Whether the task with this number can begin now where it has not failed, if there is such a place at all.

        One that fails at once is always free: every repetition would go there.
        """
        ...

    def begin(self, attempt: int, number: int, memory: int) -> None:
        """Start an attempt of the task with this number. memory: times what its first attempt had."""
        ...

    def answers(self, timeout_s: float) -> Sequence[Answer]:
        """What attempts say, as soon as one does; none after `timeout_s`, or sooner."""
        ...

    def overdue(self, attempt: int) -> None:
        """Nobody waits for this attempt any more: it may be ended, and may answer all the same."""
        ...


def run_attempts(
    pool: Pool,
    names: Sequence[str],
    *,
    sizes: Sequence[int] = (),
    engine: str = "",
    deadline_s: float = DEADLINE_S,
    attempts: int = ATTEMPTS,
    on_retry: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, Any]]:
    """Number and result of every task, each once, as they are done. names: of the tasks, for errors.

    sizes: stored bytes that each task reads; one that needs longer than `deadline_s` for them has longer.
    """
    run = _Run(pool, names, sizes, deadline_s, attempts, on_retry, clock)
    while len(run.done) < len(names):
        run.begin()
        for answer in pool.answers(run.patience_s()):
            number = run.answered(answer)
            if number is not None:
                count_done(answer.result, engine)
                yield number, answer.result
        run.look_at_deadlines()


def deadline_of(num_bytes: int, deadline_s: float) -> float:
    """Seconds that a task has which reads so many stored bytes, if others have `deadline_s`."""
    return max(deadline_s, num_bytes / SLOWEST_BYTES_PER_S)


class _Run:
    """State of a run.

    done: numbers of the tasks that have answered.
    _waiting: those to begin.  _alone: those that need the machine for themselves, once nothing else runs.
    _is_alone: whether one of these runs, and nothing is begun beside it.
    _tries: attempts of each task so far.  _memory: times that it gets of what its first attempt had, 1 if not named.
    """

    def __init__(
        self,
        pool: Pool,
        names: Sequence[str],
        sizes: Sequence[int],
        deadline_s: float,
        attempts: int,
        on_retry: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._pool, self._names, self._sizes, self._most = pool, names, sizes, attempts
        self._deadline_s, self._on_retry, self._clock = deadline_s, on_retry, clock
        self.done: set[int] = set()
        self._waiting, self._alone = deque(range(len(names))), deque[int]()
        self._tries: Counter[int] = Counter()
        self._memory: dict[int, int] = {}
        self._numbers = itertools.count()
        self._begun: dict[int, tuple[int, float]] = {}  # attempt -> its task, and when it is overdue
        self._late: dict[int, int] = {}  # attempts that were overdue, whose tasks run again
        self._is_alone = False

    def begin(self) -> None:
        while self._waiting and self._pool.num_free() > 0 and not self._is_alone:
            number = next((one for one in self._waiting if self._pool.may_take(one)), None)
            if number is None:
                break
            self._waiting.remove(number)
            self._begin(number)
        if self._alone and not self._waiting and not self._begun and self._pool.num_free() > 0:
            self._is_alone = True
            self._begin(self._alone.popleft())

    def _begin(self, number: int) -> None:
        if number in self.done:  # a late attempt was faster
            return
        attempt = next(self._numbers)
        self._tries[number] += 1
        self._begun[attempt] = (number, self._clock() + self._deadline_of(number))
        self._pool.begin(attempt, number, self._memory.get(number, 1))

    def _deadline_of(self, number: int) -> float:
        return deadline_of(self._sizes[number] if self._sizes else 0, self._deadline_s)

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
        may = isinstance(error, LostError | OSError)
        if isinstance(error, MemoryError):
            may = number not in self._memory  # once more, with twice as much
            self._memory[number] = 2
        if not may or self._tries[number] >= self._most:
            if isinstance(error, MemoryError | LostError):
                error.add_note(
                    "If that was for memory: more buckets (rebucket) need less of it for each; so do fewer processes "
                    "at once (engine='processes:1'), or nodes with more of it for each core"
                )
            error.add_note(f"in {self._names[number]}, attempt {self._tries[number]}; {NOT_COMMITTED}")
            raise error
        self._repeat(number, alone=self._pool.is_one_machine and isinstance(error, MemoryError | LostError))

    def _repeat(self, number: int, *, alone: bool = False) -> None:
        self._on_retry()
        count_retry()
        (self._alone if alone else self._waiting).append(number)

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
                    f"{self._names[number]}: an answer within {self._deadline_of(number):,.0f} s required, found none "
                    f"of {self._most} attempts; {NOT_COMMITTED}. Give it more time (REQDEDUP_DEADLINE_S), or look at "
                    "what holds the storage up"
                )
            self._repeat(number)
