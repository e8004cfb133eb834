"""The queue and its one thread: what is batched, refused, dropped and drained."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from reqdedup.serving.scheduler import (
    Cost,
    DeadlineError,
    LoopAnswer,
    OverloadedError,
    Scheduler,
    SchedulerLimits,
    Work,
)


class Gate:
    """A step that waits until it is opened, and remembers which requests were computed together."""

    def __init__(self) -> None:
        self.steps: list[list] = []
        self.opened, self.entered = threading.Event(), threading.Event()

    def run(self, requests):
        self.steps.append(list(requests))
        self.entered.set()
        assert self.opened.wait(5)
        if "bad" in requests:
            if len(requests) > 1:
                raise RuntimeError("the step fails")
            raise KeyError("bad")
        return [f"answer {request}" for request in requests]


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()


def submit(scheduler, gate, request, *, group="a", rows=1, **options):
    return scheduler.submit(Work(group=group, run=gate.run, request=request, rows=rows, **options))


def test_what_waits_is_computed_together_by_rows_and_by_group(gate):
    with Scheduler(SchedulerLimits(max_step_rows=10)) as scheduler:
        futures = [submit(scheduler, gate, "first")]
        assert gate.entered.wait(5)
        futures += [submit(scheduler, gate, name, rows=4) for name in "uvw"]
        futures += [submit(scheduler, gate, "other", group="b"), submit(scheduler, gate, "x", rows=2)]
        futures += [submit(scheduler, gate, "large", rows=400)]
        gate.opened.set()
        assert [future.result(5) for future in futures] == [
            f"answer {one}" for one in ("first", "u", "v", "w", "other", "x", "large")
        ]
    assert gate.steps == [["first"], ["u", "v", "x"], ["w"], ["other"], ["large"]]
    assert scheduler.counts.step_requests == 7
    assert scheduler.waiting == (0, 0)


def test_a_full_queue_refuses_at_once_and_a_request_larger_than_it_is_taken_alone(gate):
    with Scheduler(SchedulerLimits(max_waiting=3, max_waiting_rows=10)) as scheduler:
        submit(scheduler, gate, 0)
        assert gate.entered.wait(5)
        submit(scheduler, gate, 1, rows=100)
        with pytest.raises(OverloadedError) as refused:
            submit(scheduler, gate, 2, rows=1)
        assert refused.value.retry_after_s >= 1
        gate.opened.set()
    with Scheduler(SchedulerLimits(max_waiting=1)) as scheduler:
        gate.opened.clear()
        gate.entered.clear()
        submit(scheduler, gate, 0)
        assert gate.entered.wait(5)
        submit(scheduler, gate, 1)
        with pytest.raises(OverloadedError, match="1 requests"):
            submit(scheduler, gate, 2)
        assert scheduler.counts.refused == 1
        gate.opened.set()


def test_nothing_is_computed_after_the_deadline_or_for_a_sender_that_has_gone(gate):
    with Scheduler() as scheduler:
        first = submit(scheduler, gate, "first")
        assert gate.entered.wait(5)
        late = submit(scheduler, gate, "late", deadline=time.monotonic())
        gone = submit(scheduler, gate, "gone")
        kept = submit(scheduler, gate, "kept", deadline=time.monotonic() + 60)
        assert gone.cancel()
        gate.opened.set()
        assert first.result(5)
        assert kept.result(5) == "answer kept"
        with pytest.raises(DeadlineError, match="of waiting"):
            late.result(5)
    assert [one for step in gate.steps for one in step] == ["first", "kept"]
    assert (scheduler.counts.expired, scheduler.counts.abandoned) == (1, 1)


def test_one_bad_request_does_not_take_its_step_with_it(gate):
    with Scheduler() as scheduler:
        submit(scheduler, gate, "first")
        assert gate.entered.wait(5)
        futures = [submit(scheduler, gate, one) for one in ("good", "bad", "fine")]
        gate.opened.set()
        assert [futures[0].result(5), futures[2].result(5)] == ["answer good", "answer fine"]
        with pytest.raises(KeyError):
            futures[1].result(5)
        assert submit(scheduler, gate, "next").result(5) == "answer next"


def test_deferred_work_waits_for_an_empty_queue(gate):
    with Scheduler() as scheduler:
        submit(scheduler, gate, 0)
        assert gate.entered.wait(5)
        shadow = submit(scheduler, gate, "shadow", deferred=True)
        last = submit(scheduler, gate, "last")
        gate.opened.set()
        assert last.result(5)
        assert shadow.result(5)
    assert gate.steps == [[0], ["last"], ["shadow"]]


def test_draining_finishes_what_waits_and_refuses_what_comes(gate):
    scheduler = Scheduler()
    futures = [submit(scheduler, gate, number) for number in range(5)]
    assert gate.entered.wait(5)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while scheduler._is_open:
        time.sleep(0.001)
    with pytest.raises(OverloadedError, match="shutting down"):
        submit(scheduler, gate, "late")
    gate.opened.set()
    closing.join(5)
    assert [future.result(0) for future in futures] == [f"answer {number}" for number in range(5)]


def test_a_drain_that_takes_too_long_refuses_the_rest(gate):
    scheduler = Scheduler()
    submit(scheduler, gate, "running")
    assert gate.entered.wait(5)
    waiting = submit(scheduler, gate, "waiting")
    assert not scheduler.close(drain_s=0.01)
    with pytest.raises(OverloadedError):
        waiting.result(0)


def test_the_queue_is_bounded_by_the_time_that_a_request_would_wait(gate):
    """Steps of 10 ms a row: with 100 ms, five requests of two rows are taken, the sixth would wait longer."""
    with Scheduler(SchedulerLimits(max_wait_ms=85)) as scheduler:
        scheduler._costs[int] = cost = Cost()
        for _ in range(3):
            cost.add(1, 2, 0.020)
        submit(scheduler, gate, 0, rows=1)
        assert gate.entered.wait(5)
        scheduler._step_ends = 0.0
        for number in range(5):
            submit(scheduler, gate, number, rows=2)
        assert scheduler.wait_s == pytest.approx(0.1)
        for refuse in (lambda: submit(scheduler, gate, 5, rows=1), scheduler.refuse_if_full):
            with pytest.raises(
                OverloadedError, match=r"queue of at most 85 ms.*found 100, 5 and 10 waiting"
            ) as refused:
                refuse()
            assert refused.value.retry_after_s == 1
        assert scheduler.counts.refused == 2
        gate.opened.set()
    assert [len(step) for step in gate.steps] == [1, 5]
    assert scheduler.wait_s == 0


def test_whoever_finds_nobody_waiting_is_taken_and_the_rest_is_told_when_to_come_back(gate):
    with Scheduler(SchedulerLimits(max_wait_ms=100)) as scheduler:
        scheduler._costs[int] = cost = Cost()
        cost.add(1, 1, 2.6)
        submit(scheduler, gate, 0)
        assert gate.entered.wait(5)
        submit(scheduler, gate, 1)  # behind a step of 2.6 s
        with pytest.raises(OverloadedError) as refused:
            submit(scheduler, gate, 2)
        assert refused.value.retry_after_s in (5, 6)  # that step, and the one of request 1
        gate.opened.set()


def test_costs_tell_a_request_from_its_rows_and_follow_a_model_that_changes():
    cost = Cost()
    for requests, rows in ((1, 10), (3, 30), (1, 500), (2, 20), (5, 900)) * 20:
        cost.add(requests, rows, 0.002 * requests + 0.0001 * rows)
    assert cost.of(4, 100) == pytest.approx(0.018)
    for requests, rows in ((1, 10), (3, 30), (1, 500), (2, 20), (5, 900)) * 100:
        cost.add(requests, rows, 0.004 * requests + 0.0002 * rows)
    assert cost.of(4, 100) == pytest.approx(0.036, rel=1e-3)
    alike = Cost()
    for requests in (1, 2, 1, 4):
        alike.add(requests, 100 * requests, 0.003 * requests)
    assert alike.of(5, 500) == pytest.approx(0.015)
    assert Cost().of(3, 5) == 0


def test_an_answer_for_a_coroutine_comes_into_its_loop(gate):
    async def ask(scheduler, *requests):
        answers = [LoopAnswer() for _ in requests]
        for answer, request in zip(answers, requests, strict=True):
            submit(scheduler, gate, request, answer=answer)
        answers[1].future.cancel()
        gate.opened.set()
        return await asyncio.gather(*(answer.future for answer in answers), return_exceptions=True)

    with Scheduler(SchedulerLimits(max_step_rows=1)) as scheduler:
        first, second, third = asyncio.run(ask(scheduler, "a", "b", "bad"))
    assert first == "answer a"
    assert isinstance(second, asyncio.CancelledError)
    assert isinstance(third, KeyError)
    assert scheduler.counts.abandoned == 1
