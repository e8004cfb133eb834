"""Runs a function on W ranks: real processes on this machine, joined in one gloo process group.

Every rank is a fresh Python that runs `rank_process.main`, not a `multiprocessing` child: those import the caller's
`__main__` again, which a plain script without a main guard, a notebook or a Dagster run does not survive. Ranks meet
through a file (no port to race for) and talk over the loopback interface only. Their stdout and stderr are the
caller's. A rank that raises, is killed or hangs in a collective ends the run: the others are stopped and its error is
raised here. Needs POSIX (an inherited file descriptor carries the events).
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT_CAUSE_WAIT_S = 3.0
"""After a first failure, how long to wait for the other ranks' own: a lost peer is a symptom, not the cause."""


_PROGRAM = """
import gc, pickle, sys
gc.disable()
sys.path[:] = pickle.load(sys.stdin.buffer)
from reqdedup.training.rank_process import main
main(int(sys.argv[1]))
"""


class RankError(RuntimeError):
    """A rank failed; the message holds its own error text. `rank` says which one."""

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """What a rank needs to join: its place, where to meet, backend, and how long a collective may wait [s]."""

    rank: int
    world_size: int
    store_path: str
    backend: str
    collective_timeout_s: float


@dataclass(frozen=True, kw_only=True)
class RankMessage:
    """One message of a rank to its launcher: `event`, `result` (its last) or `error` (its last, `value` the text).

    is_symptom: the error is a collective that failed because another rank went away.
    """

    kind: str
    value: Any
    is_symptom: bool = False


def run_ranks(
    target: Callable[..., Any],
    *args: Any,
    world_size: int,
    backend: str = "gloo",
    collective_timeout_s: float = 300.0,
    on_event: Callable[[Any], None] | None = None,
) -> list[Any]:
    """What `target(report, *args)` returned on each of `world_size` ranks, in rank order.

    target: a function of an importable module; arguments, events and results travel by pickle. Inside it
        `torch.distributed` is initialised; `report(event)` calls `on_event(event)` in this process.
    backend: of the process group.  collective_timeout_s: a collective that waits longer for another rank raises.
    Raises RankError with the text of the rank that failed first; no rank is left running, whatever ends the call.
    """
    if world_size < 1:
        raise ValueError(f"world_size: at least 1 required, found {world_size}")
    payload = pickle.dumps((target, args))
    with tempfile.TemporaryDirectory(prefix="reqdedup-ranks-") as meeting_place:
        processes: list[subprocess.Popen[bytes]] = []
        connections: dict[Connection, int] = {}
        try:
            for rank in range(world_size):
                settings = RankSettings(
                    rank=rank,
                    world_size=world_size,
                    store_path=str(Path(meeting_place) / "store"),
                    backend=backend,
                    collective_timeout_s=collective_timeout_s,
                )
                process, connection = _start()
                processes.append(process)
                connections[connection] = rank
                path = [path or os.getcwd() for path in sys.path]
                _send(process, pickle.dumps(path) + pickle.dumps(settings))
            for process in processes:  # a large payload waits until its rank reads; by now all of them are starting
                _send(process, payload, is_last=True)
            return _collect(processes, connections, on_event)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
            for connection in connections:
                connection.close()


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    receiver, sender = Pipe(duplex=False)
    command = [sys.executable, "-c", _PROGRAM, str(sender.fileno())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[sender.fileno()])
    sender.close()
    return process, receiver


def _send(process: subprocess.Popen[bytes], data: bytes, *, is_last: bool = False) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        process.stdin.flush()
        if is_last:
            process.stdin.close()
    except BrokenPipeError:
        pass  # it died before it read; _collect sees that and says how


def _collect(
    processes: list[subprocess.Popen[bytes]],
    connections: Mapping[Connection, int],
    on_event: Callable[[Any], None] | None,
) -> list[Any]:
    """Every rank's result; raises RankError with the cause once a rank fails."""
    results: dict[int, Any] = {}
    failures: dict[int, RankMessage] = {}
    open_connections = set(connections)
    deadline: float | None = None
    while open_connections:
        if any(not failure.is_symptom for failure in failures.values()):
            break
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait(list(open_connections), timeout=patience)
        if not ready:
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = connections[connection]
            try:
                message: RankMessage = pickle.loads(connection.recv_bytes())
            except EOFError:
                open_connections.discard(connection)
                if rank not in results and rank not in failures:
                    failures[rank] = RankMessage(kind="error", value=_obituary(processes[rank]))
                continue
            if message.kind == "event":
                if on_event is not None:
                    on_event(message.value)
            elif message.kind == "result":
                results[rank] = message.value
            else:
                failures[rank] = message
        if failures and deadline is None:
            deadline = time.monotonic() + ROOT_CAUSE_WAIT_S
    if failures:
        rank = min(failures, key=lambda rank: (failures[rank].is_symptom, rank))
        raise RankError(f"rank {rank} of {len(processes)} failed:\n{failures[rank].value}", rank=rank)
    return [results[rank] for rank in range(len(processes))]


def _obituary(process: subprocess.Popen[bytes]) -> str:
    """How a rank ended that sent no last word."""
    try:
        code = process.wait(timeout=ROOT_CAUSE_WAIT_S)
    except subprocess.TimeoutExpired:
        return "it closed its connection without a result"
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"it was killed by {name}{hint}"
    return f"it ended with exit code {code} and without a result; its own output above says why"
