"""A worker process: `python -m reqdedup.distributed.worker FD`, with a socket to the process that started it.

A message is work, or a task of the work before it, which is answered before the next. When the driver is gone, the
worker ends at once, in the middle of a task too: nobody would commit what it writes.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def main(arguments: list[str]) -> None:
    connection = Connection(int(arguments[0]))
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    payload, loaded = b"", None

    def work() -> Any:
        nonlocal loaded
        loaded = pickle.loads(payload) if loaded is None else loaded
        return loaded

    while True:
        message = messages.get()
        if message.startswith(b"work"):
            payload, loaded = message[4:], None
            continue
        attempt, task = pickle.loads(message[4:])
        connection.send_bytes(told(attempt, work, task))


def told(attempt: int, work: Callable[[], Any], task: bytes) -> bytes:
    """What the work says of a pickled task: attempt, result, error or None, the error's traceback; all pickled."""
    try:
        return pickle.dumps((attempt, work().run(pickle.loads(task)), None, ""))
    except BaseException as error:
        return pickle.dumps((attempt, None, _portable(error), traceback.format_exc()))


def _receive(connection: Connection, messages: queue.SimpleQueue[bytes]) -> None:
    while True:
        try:
            messages.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)


def _portable(error: BaseException) -> Any:
    """The error, or one of Python's own that says the same, if it cannot travel."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        again = None
    if type(again) is type(error):
        return error
    builtin = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    try:
        return builtin(str(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
