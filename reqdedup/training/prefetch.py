"""A background thread that keeps a bounded number of items ready."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

_POLL_S = 0.1


class _End:
    """The stream ended, with an error or without."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@contextmanager
def prefetched(stream: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """The same items in the same order, made by a thread that is at most `depth` items ahead; 0 means no thread.

    An error of the stream is raised where its item would have come. Leaving the context stops the
    thread, after the item that it is at.
    """
    if depth == 0:
        yield stream
        return
    ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Item | _End) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in stream:
                if not put(item):
                    return
            put(_End(None))
        except BaseException as error:
            put(_End(error))

    def consume() -> Iterator[Item]:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    thread = threading.Thread(target=work, name="reqdedup-prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        thread.join()
