"""Iterators side by side: their output in order, their errors in place, and nobody waits for a reader who left."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from reqdedup.storage.join.ordered import run_ordered


def counting(start: int, length: int):
    return lambda: iter(range(start, start + length))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_items_come_in_the_order_of_the_iterators(threads):
    make = [counting(100 * number, number % 4) for number in range(12)]
    assert list(run_ordered(make, threads=threads)) == [item for one in make for item in one()]


@pytest.mark.parametrize(("max_ahead", "made"), [(0, 1), (10, 1), (25, 2), (1000, 6)])
def test_a_worker_is_ahead_of_its_reader_by_a_weight_and_at_least_an_item(max_ahead, made):
    seen: list[int] = []
    started, gate = threading.Event(), threading.Event()

    def first():
        started.wait(30)
        yield 0

    def second():
        started.set()
        for item in range(6):
            seen.append(item)
            yield item
        gate.set()

    items = run_ordered([first, second], threads=2, weigh=lambda item: 10, max_ahead=max_ahead)
    assert next(items) == 0
    # The worker makes one item more, which it holds until there is room.
    wanted = min(made + 1, 6)
    for _ in range(300):
        if len(seen) == wanted:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(seen) == wanted
    assert gate.is_set() == (made == 6)
    assert list(items) == list(range(6))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_in_its_place(threads):
    def fails():
        yield 10
        raise OSError("bucket 1")

    items = run_ordered([counting(0, 2), fails, counting(20, 2)], threads=threads)
    assert [next(items) for _ in range(3)] == [0, 1, 10]
    with pytest.raises(OSError, match="bucket 1"):
        next(items)


def test_closing_early_stops_the_workers():
    before = threading.active_count()
    items = run_ordered([counting(0, 1000)] * 4, threads=2)
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


@pytest.mark.slow
def test_a_program_that_ends_in_the_middle_of_a_pass_ends():
    program = "from reqdedup.storage.join.ordered import run_ordered\nitems = run_ordered([lambda: iter(range(99))] * 3, threads=2)\nprint(next(items))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0\n")
