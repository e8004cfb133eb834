"""Every engine gives each task's result once; what fails, stalls or is killed runs again, or ends the run by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reqdedup.distributed import Inline, Processes, engine_for
from reqdedup.distributed.attempts import Answer, LostError, run_attempts
from tests.distributed.faulty import Clock, FaultyPool
from tests.distributed.work import Square, Squares

SOON_S = 2.0


def begun(folder: Path, number: int) -> int:
    return len(list(folder.glob(f"{number}-*")))


@pytest.mark.parametrize("name", ["inline", pytest.param("processes:2", marks=pytest.mark.slow)])
def test_each_task_gives_its_result_once(tmp_path, name):
    tasks = [Square(number) for number in range(9)]
    work = Squares(tmp_path)
    engine = engine_for(name, work, num_tasks=9)
    assert sorted(engine.run(work, tasks)) == [(number, number**2) for number in range(9)]
    assert (engine.name, engine.retries) == (name, 0)


def test_an_engine_without_a_process_is_refused():
    with pytest.raises(ValueError, match="at least 1 required, found 0"):
        Processes(0)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "retries"), [("kill", 1), ("hang", 1), ("disk", 1), ("memory", 1)])
def test_a_task_that_failed_once_runs_again(tmp_path, fault, retries):
    engine = Processes(2, deadline_s=SOON_S)
    tasks = [Square(0), Square(1, fault, once=True), Square(2)]
    assert sorted(engine.run(Squares(tmp_path), tasks)) == [(0, 0), (1, 1), (2, 4)]
    assert engine.retries == retries
    assert begun(tmp_path, 1) == 2


@pytest.mark.slow
def test_an_error_of_the_task_itself_is_raised_as_it_is_and_names_it(tmp_path):
    with pytest.raises(ValueError, match="a whole number required") as raised:
        list(Processes(1).run(Squares(tmp_path), [Square(3, "value")]))
    assert str(raised.value) == "a whole number required, found none"
    assert "in square 3, attempt 1" in raised.value.__notes__[0]
    assert "work.py" in str(raised.value.__cause__), "where in the worker"
    assert begun(tmp_path, 3) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("kill", LostError, "status -9"),
        ("disk", OSError, "No space left"),
        pytest.param("hang", TimeoutError, r"within 1 s", marks=pytest.mark.soak),
    ],
)
def test_three_attempts_end_the_run(tmp_path, fault, error, words):
    with pytest.raises(error, match=words):
        list(Processes(2, deadline_s=1).run(Squares(tmp_path), [Square(5, fault)]))
    assert begun(tmp_path, 5) == 3


@pytest.mark.slow
def test_closing_a_run_ends_its_processes(tmp_path):
    engine = Processes(2)
    run = engine.run(Squares(tmp_path), [Square(0), Square(1, "hang")])
    assert next(run) == (0, 0)
    pids = {int(path.name.split("-")[1]) for path in tmp_path.iterdir()}
    run.close()
    assert list(engine.run(Squares(tmp_path), [Square(2)])) == [(0, 4)]
    assert {int(path.name.split("-")[1]) for path in tmp_path.iterdir()} == pids, "one that waited did it"
    engine.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_workers_end_when_their_driver_is_killed(tmp_path):
    script = (
        "from pathlib import Path\n"
        "from reqdedup.distributed import Processes\n"
        "from tests.distributed.work import Square, Squares\n"
        f"list(Processes(1).run(Squares(Path({str(tmp_path)!r})), [Square(0, 'hang')]))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script])  # a script without a main guard
    while not (there := list(tmp_path.iterdir())) and driver.poll() is None:
        time.sleep(0.02)
    worker = int(there[0].name.split("-")[1])
    driver.kill()
    driver.wait()
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()


def test_work_that_cannot_travel_is_refused_by_name(tmp_path):
    class Local(Squares):
        pass

    with pytest.raises(
        ValueError, match=r"engine processes:1: work that another process can load required.*importable"
    ):
        list(Processes(1).run(Local(tmp_path), [Square(1)]))


def test_the_engine_that_a_name_means(tmp_path, monkeypatch):
    work = Squares(tmp_path)
    assert isinstance(engine_for(None, work, num_tasks=9), Inline)
    large = {"num_tasks": 9, "num_bytes": 2**40}
    monkeypatch.setattr("reqdedup.distributed.engine.num_cores", lambda: 4)
    assert engine_for(None, work, **large).name == "processes:4"
    assert isinstance(engine_for(None, lambda: None, **large), Inline), "what cannot travel stays"
    assert isinstance(engine_for(None, work, pays_from=8, **large), Inline), "too few cores for a shuffle"
    monkeypatch.setenv("REQDEDUP_ENGINE", "processes:3")
    assert engine_for(None, work, num_tasks=1).name == "processes:3"
    assert engine_for("inline", work, **large).name == "inline"
    for wrong in ("processes:0", "processes:", "spark", "inline:2"):
        with pytest.raises(ValueError, match="processes:N, ray or ray:HOST:PORT required, found"):
            engine_for(wrong, work, num_tasks=1)


@pytest.mark.parametrize("seed", range(20))
def test_answers_that_are_late_lost_or_double_count_once(tmp_path, seed):
    rng, clock, tasks = np.random.default_rng(seed), Clock(), [Square(number) for number in range(12)]
    odds = {"drops": 0.4, "doubles": 0.5, "deadline_s": 10.0}
    pool = FaultyPool(pickle.dumps(Squares(tmp_path)), tasks, rng, clock, **odds)
    found = list(run_attempts(pool, [task.name for task in tasks], deadline_s=10, attempts=30, clock=clock))
    assert sorted(found) == [(number, number**2) for number in range(12)]
    assert pool.num_overdue > 0


def test_a_task_out_of_memory_runs_alone():
    class Pool:
        is_one_machine = True

        def __init__(self) -> None:
            self.running: dict[int, int] = {}
            self.beside: list[int] = []

        def num_free(self) -> int:
            return 2 - len(self.running)

        def may_take(self, number: int) -> bool:
            return True

        def begin(self, attempt: int, number: int, memory: int) -> None:
            self.running[attempt] = number
            if number == 0:
                self.beside.append(len(self.running) - 1)

        def answers(self, timeout_s: float) -> list[Answer]:
            attempt, number = self.running.popitem()
            if number == 0 and len(self.beside) == 1:
                return [Answer(attempt=attempt, error=MemoryError())]
            return [Answer(attempt=attempt, result=number)]

        def overdue(self, attempt: int) -> None:
            raise AssertionError

    pool = Pool()
    assert sorted(number for number, _ in run_attempts(pool, ["a"] * 5)) == list(range(5))
    assert pool.beside[-1] == 0
    assert len(pool.beside) == 2
