"""Iterators side by side: their output in order, their errors in place, and nobody waits for a reader who left."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from reqdedup.storage.ordered import run_ordered


def counting(start: int, length: int):
    return lambda: iter(range(start, start + length))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_items_come_in_the_order_of_the_iterators(threads):
    make = [counting(100 * number, number % 4) for number in range(12)]
    assert list(run_ordered(make, threads=threads)) == [item for one in make for item in one()]


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


def test_a_program_that_ends_in_the_middle_of_a_pass_ends():
    program = "from reqdedup.storage.ordered import run_ordered\nitems = run_ordered([lambda: iter(range(99))] * 3, threads=2)\nprint(next(items))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0\n")
