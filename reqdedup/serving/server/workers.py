"""Several worker processes behind one door: each user has one, which holds their context.

    client -> router (this process, no model) -> worker = bucket of the user -> answer
    client that knows the workers ------------->

The kernel cannot choose the worker: with a shared port it would deal connections, not users. So a small router reads
the user of a request (a header of our client, else the body) and passes bytes on; our client may also ask for the
workers' addresses and leave it out. Every worker listens on a socket that this process keeps, so connections to a
worker that died wait for the next one; what it was computing is answered 503, and a client asks again. The next one
loads what its siblings serve: every change is written down in a file that the workers share. Places of bundles are
watched by this process, which tells one worker after another.

A worker whose parent is gone ends: its standard input is a pipe that this process holds.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from reqdedup.environment import variables
from reqdedup.serving.server.door import Access, run_until_signal
from reqdedup.serving.server.router import Router
from reqdedup.serving.server.settings import ServeSettings

if TYPE_CHECKING:
    from reqdedup.serving.server.watching import Watch

logger = logging.getLogger(__name__)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CANNOT_SERVE = 2
"""Exit code of a worker that cannot serve what it was told to: starting it again would not help."""
RESTART_AFTER_S = (0.0, 0.5, 2.0, 10.0)
"""Before the first, second, ... start in a row of a worker that did not live for a minute [seconds]."""


class Worker:
    """One process and the socket that it serves, which outlives it."""

    def __init__(self, number: int, settings: ServeSettings) -> None:
        self.number, self.cannot_serve = number, False
        self.restarts, self.failed_starts, self.deaths = -1, 0, 0
        access = replace(settings.access, certificate=None, key=None)  # TLS ends at the router
        self._settings = replace(settings, access=access)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        self.process = self._start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def _start(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "reqdedup.serving", str(self.socket.fileno()), str(self.number)]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, pass_fds=[self.socket.fileno()], env={**variables(), **ONE_THREAD}
        )
        self.restarts += 1
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died already: whoever waits for it sees that
            process.stdin.write(self._settings.to_json().encode() + b"\n")
            process.stdin.flush()
        return process

    def keep_alive(self, is_ending: threading.Event) -> None:
        """Start it again whenever it dies, until the server ends. One that cannot even begin ends the server.

        A start that fails, for want of memory or processes, is tried again too.
        """
        short_lives = 0
        while not is_ending.is_set():
            started = time.monotonic()
            code = self.process.wait()
            self.deaths += 1
            if is_ending.is_set():
                return
            if code == CANNOT_SERVE and not self.restarts:
                self.cannot_serve = True
                while not is_ending.wait(0.2):
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            short_lives = short_lives + 1 if time.monotonic() - started < 60 else 0
            wait = RESTART_AFTER_S[min(short_lives, len(RESTART_AFTER_S) - 1)]
            logger.error("worker %d ended with code %d; it is started again", self.number, code)
            if is_ending.wait(wait):
                return
            if not self._start_again(is_ending):
                return

    def _start_again(self, is_ending: threading.Event) -> bool:
        """False if the server ends before there is a process."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        for wait in itertools.chain(RESTART_AFTER_S[1:], itertools.repeat(RESTART_AFTER_S[-1])):
            try:
                self.process = self._start()
                return True
            except OSError as error:
                self.failed_starts += 1
                logger.error("worker %d could not be started, again in %g s: %s", self.number, wait, error)
            if is_ending.wait(wait):
                break
        return False

    def end(self, drain_s: float) -> None:
        with suppress(OSError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(drain_s + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        self.socket.close()


def serve_workers(
    settings: ServeSettings, sockets: list[socket.socket], *, answers: Callable[[], None] = lambda: None
) -> None:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT; then drain, and end them.

    answers: called once all of them answer. Raises ValueError if a worker cannot begin, for a bundle or a store that it
    cannot serve; it has said which.
    """
    with tempfile.TemporaryDirectory(prefix="reqdedup-serve-") as folder:
        _serve_workers(replace(settings, serving=f"{folder}/serving.json"), sockets, answers)


def _serve_workers(settings: ServeSettings, sockets: list[socket.socket], answers: Callable[[], None]) -> None:
    is_ending = threading.Event()
    watch = _watch(settings)
    workers = [Worker(number, settings) for number in range(settings.workers)]
    keepers = [threading.Thread(target=worker.keep_alive, args=[is_ending], daemon=True) for worker in workers]
    for keeper in keepers:
        keeper.start()
    router = Router(
        [worker.address for worker in workers],
        settings.limits,
        restarts=lambda: [one.restarts for one in workers],
        failed_starts=lambda: [one.failed_starts for one in workers],
        deaths=lambda: [one.deaths for one in workers],
    )
    access: Access = settings.access

    def begin() -> None:
        loop = asyncio.get_running_loop()
        head = [(b"authorization", b"Bearer " + access.token.encode())] if access.token else []

        def load(place: str) -> None:
            asyncio.run_coroutine_threadsafe(router.load(place, head), loop).result()

        def wait_and_watch() -> None:
            _wait_for(workers, answers)
            if watch is not None:
                watch.run(load, settings.watch_s, is_ending)

        threading.Thread(target=wait_and_watch, daemon=True).start()

    try:
        run_until_signal(router, access, settings.limits, sockets, drain_s=settings.drain_s, answers=begin)
    finally:
        is_ending.set()
        ends = [threading.Thread(target=worker.end, args=[settings.drain_s]) for worker in workers]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
    if any(worker.cannot_serve for worker in workers):
        raise ValueError("workers that can serve what they were told to required, found what they say above")


def _watch(settings: ServeSettings) -> Watch | None:
    """Of this process: if each worker had its own, they would not change together."""
    if not settings.watch_s:
        return None
    from reqdedup.serving.server.watching import Watch  # torch, which this process does without otherwise

    return Watch(settings.bundles, copies=settings.copies)


def _wait_for(workers: Sequence[Worker], answers: Callable[[], None]) -> None:
    """Calls `answers` once every worker has answered: a connection waits at its socket until it does."""
    with suppress(OSError, http.client.HTTPException):  # the server ends before that
        for worker in workers:
            connection = http.client.HTTPConnection(*worker.address)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            connection.close()
        answers()


def end_with_parent() -> None:
    """In a worker: SIGTERM to itself once its standard input ends."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1):  # sys.stdin has a lock that a daemon thread must not hold when the process ends
                pass
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
