"""Several iterators at once, their output in order and bounded.

Threads are worth it where the work is Parquet decoding and numpy, which release the interpreter lock. Each iterator
runs on one worker; the reader empties them in the order given. What a worker has made before its reader comes is
bounded by weight: with room for all of an iterator's items workers never wait for one another, with less they do, and
the memory is `threads` times that room whatever the number of iterators.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


def run_ordered(
    make: Sequence[Callable[[], Iterator[Item]]],
    *,
    threads: int,
    weigh: Callable[[Item], int] = lambda item: 1,
    max_ahead: int = 1,
) -> Iterator[Item]:
    """The items of `make[0]()`, then those of `make[1]()`, and so on, with up to `threads` of them running.

    weigh, max_ahead: a worker stops before the items that its reader has not taken weigh more, unless it is just one.

    An exception of any of them is raised here, in its place. Closing the iterator early stops the workers.
    Raises ValueError for threads < 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, found {threads}")
    if threads == 1 or len(make) < 2:
        for one in make:
            yield from one()
        return
    outputs: list[_Output[Item]] = [_Output(max_ahead) for _ in make]

    def work(one: Callable[[], Iterator[Item]], out: _Output[Item]) -> None:
        try:
            for item in one():
                if not out.put(item, weigh(item)):
                    return
            out.end()
        except BaseException as error:
            out.end(error)

    # Workers start iterators in order, so the one that is read next is always running: no deadlock. They are daemons: a
    # program that ends with an iterator half read, which nobody closes then, does not wait for them.
    todo = iter(list(zip(make, outputs)))
    lock = threading.Lock()
    stop = threading.Event()

    def worker() -> None:
        while not stop.is_set():
            with lock:
                one = next(todo, None)
            if one is None:
                return
            work(*one)

    workers = [threading.Thread(target=worker, name=f"bucket_{number}", daemon=True) for number in range(threads)]
    for thread in workers:
        thread.start()
    try:
        for out in outputs:
            yield from out
    finally:
        stop.set()
        for out in outputs:
            out.close()
        for thread in workers:
            thread.join()


class _Output(Generic[Item]):
    """What one worker has made and its reader has not taken yet; `max_weight` of it, and one item in any case."""

    def __init__(self, max_weight: int) -> None:
        self._items: deque[tuple[Item, int]] = deque()
        self._weight, self._max_weight = 0, max_weight
        self._ended, self._closed = False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: Item, weight: int) -> bool:
        """Wait for room and add an item; False if nobody will take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._items or self._weight + weight <= self._max_weight)
            if not self._closed:
                self._items.append((item, weight))
                self._weight += weight
                self._changed.notify_all()
            return not self._closed

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes any more; after what is there, the reader gets this error."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is taken any more."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._items) or self._ended)
                if not self._items:
                    break
                item, weight = self._items.popleft()
                self._weight -= weight
                self._changed.notify_all()
            yield item
            del item
        if self._error is not None:
            raise self._error
