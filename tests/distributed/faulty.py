"""An engine in pure Python that shuffles, duplicates, delays and drops what its tasks say, as a bad network does."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from reqdedup.distributed.attempts import Answer, run_attempts


class Clock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FaultyPool:
    """Runs each attempt at once, and answers some time later, twice, or never.

    drops, doubles: probability of each.  deadline_s: of the driver, so that some answers come later.
    """

    is_one_machine = False

    def __init__(
        self, work: bytes, tasks: Sequence[Any], rng: np.random.Generator, clock: Clock, **odds: float
    ) -> None:
        self._work, self._tasks, self._rng, self._clock, self._odds = pickle.loads(work), tasks, rng, clock, odds
        self._coming: list[tuple[float, Answer]] = []
        self.num_overdue = 0

    def num_free(self) -> int:
        return 3

    def may_take(self, number: int) -> bool:
        return True

    def begin(self, attempt: int, number: int, memory: int) -> None:
        try:
            result = self._work.run(pickle.loads(pickle.dumps(self._tasks[number])))
            answer = Answer(attempt=attempt, result=pickle.loads(pickle.dumps(result)))
        except Exception as error:
            answer = Answer(attempt=attempt, error=error)
        if attempt >= 2 * len(self._tasks) or self._rng.random() >= self._odds["drops"]:
            for _ in range(1 + (self._rng.random() < self._odds["doubles"])):
                self._coming.append((self._clock.now + self._rng.exponential(self._odds["deadline_s"] / 2), answer))

    def answers(self, timeout_s: float) -> list[Answer]:
        self._clock.now += timeout_s
        due = [answer for at, answer in self._coming if at <= self._clock.now]
        self._coming = [(at, answer) for at, answer in self._coming if at > self._clock.now]
        return [due[i] for i in self._rng.permutation(len(due))]

    def overdue(self, attempt: int) -> None:
        self.num_overdue += 1


class Faulty:
    """The engine. seed: of its faults; at most `attempts` of a task."""

    name, is_here = "faulty", False

    def __init__(self, seed: int, *, attempts: int = 30, drops: float = 0.3, doubles: float = 0.3) -> None:
        self.retries = 0
        self._rng, self._attempts = np.random.default_rng(seed), attempts
        self._odds = {"drops": drops, "doubles": doubles, "deadline_s": 10.0}

    def run(self, work: Any, tasks: Sequence[Any]) -> Generator[tuple[int, Any], None, None]:
        clock = Clock()
        pool = FaultyPool(pickle.dumps(work), tasks, self._rng, clock, **self._odds)
        names = [task.name for task in tasks]
        yield from run_attempts(pool, names, deadline_s=10, attempts=self._attempts, on_retry=self._count, clock=clock)

    def _count(self) -> None:
        self.retries += 1
