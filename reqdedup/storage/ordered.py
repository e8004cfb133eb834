"""Several iterators at once, their output in order and bounded.

Threads are worth it where the work is Parquet decoding and numpy, which release the interpreter lock. Each iterator
runs on one worker and may be at most `AHEAD` items before its reader; the reader empties them in the order given. So
at most `threads` iterators are open, and memory is `threads * (AHEAD + 1)` items whatever the number of iterators.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

AHEAD = 1
_WAIT_S = 0.1
_END = object()


def run_ordered(make: Sequence[Callable[[], Iterator[Item]]], *, threads: int) -> Iterator[Item]:
    """The items of `make[0]()`, then those of `make[1]()`, and so on, with up to `threads` of them running.

    An exception of any of them is raised here, in its place. Closing the iterator early stops the workers.
    Raises ValueError for threads < 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, found {threads}")
    if threads == 1 or len(make) < 2:
        for one in make:
            yield from one()
        return
    stop = threading.Event()
    queues: list[queue.Queue] = [queue.Queue(AHEAD) for _ in make]

    def put(out: queue.Queue, item: object) -> bool:
        while not stop.is_set():
            try:
                out.put(item, timeout=_WAIT_S)
                return True
            except queue.Full:
                continue
        return False

    def work(one: Callable[[], Iterator[Item]], out: queue.Queue) -> None:
        try:
            for item in one():
                if not put(out, (item, None)):
                    return
            put(out, (_END, None))
        except BaseException as error:
            put(out, (_END, error))

    # Workers start iterators in order, so the one that is read next is always running: no deadlock. They are daemons: a
    # program that ends with an iterator half read, which nobody closes then, does not wait for them.
    todo = iter(list(zip(make, queues)))
    lock = threading.Lock()

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
        for out in queues:
            while True:
                item, error = out.get()
                if error is not None:
                    raise error
                if item is _END:
                    break
                yield item
    finally:
        stop.set()
        for thread in workers:
            thread.join()
