"""Tasks on a Ray cluster: `ray` (that of RAY_ADDRESS, or of this host) or `ray:HOST:PORT`. The only importer of ray.

    driver, on a node of the cluster     work -> ray.put once        attempt -> one Ray task, on the node that we choose
    node                                 reads and writes the table's storage itself; answers with what fits an object

Ray starts processes and carries small messages; deadlines, repetitions and where an attempt goes are ours. A link that
is cut without a word leaves Ray waiting for ever, although it reports the node dead: so an attempt on a dead node is
lost, one past its deadline runs again on another node, and one that nobody waits for ends itself. No cluster is started
here, since Ray's processes listen on all interfaces, and one of several hosts is refused if it serves callers without a
token. docs/decisions/0101.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reqdedup.distributed.attempts import DEADLINE_S, Answer, LostError, deadline_of
from reqdedup.distributed.engine import RAY_ADDRESS
from reqdedup.distributed.pooled import Pooled, answer_of
from reqdedup.distributed.worker import told
from reqdedup.environment import variables

if TYPE_CHECKING:
    from reqdedup.distributed.engine import Task

LOOK_EVERY_S = 2.0
"""At the nodes of the cluster."""

CONNECT_S = 10.0
"""That the head of a cluster has to be reached in."""

END_S = 10.0
"""That attempts have to end in when the run does."""

TASK_BYTES, BYTES_PER_STORED_BYTE = 300e6, 10
"""Memory of a task: of its libraries, and for each stored byte that it reads. A task that needs more than the memory of
its node for one core takes several cores of it."""


class Ray(Pooled):
    """Tasks on the nodes of a running cluster, of which this host is one.

    address: HOST:PORT of its head; '' for that of RAY_ADDRESS or of this host.
    """

    def __init__(self, address: str = "", *, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(f"ray:{address}" if address else "ray", deadline_s=deadline_s)
        self._address = address

    @contextmanager
    def pool(self, work: bytes, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[_Pool]:
        _connect(self._address, self.name)
        nodes = _alive_nodes()
        others = sorted({node.host for node in nodes.values() if not _is_here(node.host)})
        if others:
            _refuse_open_cluster(self.name, others)
        pool = _Pool(work, tasks, sizes, self._deadline_s)
        try:
            yield pool
        finally:
            pool.end()


@dataclass(frozen=True)
class _Node:
    """host: its address.  cores: that it works on.  memory: bytes for each of them."""

    host: str
    cores: int
    memory: float


@dataclass(frozen=True)
class _Attempt:
    """An attempt that runs, and where; cores: that it takes there."""

    number: int
    ref: Any
    node: str
    cores: int


class _Pool:
    """Attempts of one run on the nodes that are alive."""

    is_one_machine = False

    def __init__(self, work: bytes, tasks: Sequence[Task], sizes: Sequence[int], deadline_s: float) -> None:
        self._work, self._key, self._tasks, self._sizes = ray.put(work), uuid.uuid4().hex, tasks, sizes
        self._deadline_s = deadline_s
        self._running: dict[int, _Attempt] = {}
        self._failed_on: dict[int, set[str]] = defaultdict(set)
        self._nodes, self._looked_at = _alive_nodes(), time.monotonic()

    def num_free(self) -> int:
        self._look()
        free = self._free()
        if not free:
            raise ValueError("engine ray: a node with cores required, found none alive; is the cluster still there?")
        return sum(max(cores, 0) for cores in free.values())

    def may_take(self, number: int) -> bool:
        elsewhere = [cores for node, cores in self._free().items() if node not in self._failed_on[number]]
        return not elsewhere or max(elsewhere) > 0

    def begin(self, attempt: int, number: int, memory: int) -> None:
        free, failed = self._free(), self._failed_on[number]
        chosen = max(free, key=lambda one: (one not in failed, free[one], one))
        node = self._nodes[chosen]
        wanted = memory * (TASK_BYTES + BYTES_PER_STORED_BYTE * self._sizes[number])
        cores = min(max(math.ceil(wanted / node.memory), memory), node.cores)
        options = _attempt.options(
            num_cpus=cores,
            max_retries=0,
            name=self._tasks[number].name,
            scheduling_strategy=NodeAffinitySchedulingStrategy(chosen, soft=True),
        )
        limit_s = deadline_of(self._sizes[number], self._deadline_s) + LOOK_EVERY_S
        task = pickle.dumps(self._tasks[number])
        ref = options.remote(attempt, self._work, self._key, task, limit_s)
        self._running[attempt] = _Attempt(number, ref, chosen, cores)

    def answers(self, timeout_s: float) -> list[Answer]:
        by_ref = {one.ref: attempt for attempt, one in self._running.items()}
        refs = list(by_ref)
        if refs:
            ray.wait(refs, timeout=min(timeout_s, LOOK_EVERY_S))
        ready = ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else []
        return [*(self._answer(by_ref[ref]) for ref in ready), *self._lost()]

    def overdue(self, attempt: int) -> None:
        one = self._running.pop(attempt)
        self._failed_on[one.number].add(one.node)
        _cancel(one.ref)

    def end(self) -> None:
        """End the attempts that run, and wait until they have: nobody writes files of theirs then."""
        refs = [one.ref for one in self._running.values()]
        for ref in refs:
            _cancel(ref)
        if refs:
            with suppress(RayError):
                ray.wait(refs, num_returns=len(refs), timeout=END_S)
        self._running.clear()

    def _answer(self, attempt: int) -> Answer:
        one = self._running.pop(attempt)
        host = self._host(one.node)
        try:
            answer = answer_of(ray.get(one.ref))
        except OutOfMemoryError as error:
            answer = Answer(attempt=attempt, error=MemoryError(f"killed on {host}: {error}"))
        except RayTaskError as error:  # it never came as far as our own code
            missing = (
                f"engine ray: reqdedup and what it needs on every node required, found on {host}: "
                f"{str(error).strip().splitlines()[-1]}"
            )
            answer = Answer(attempt=attempt, error=ValueError(missing))
        except RayError as error:
            answer = Answer(attempt=attempt, error=LostError(f"on {host}: {type(error).__name__}: {error}"))
        if answer.error is not None:
            self._failed_on[one.number].add(one.node)
        return answer

    def _lost(self) -> list[Answer]:
        """Of attempts whose node is alive no more: Ray itself may never say so."""
        self._look()
        gone = {attempt: one for attempt, one in self._running.items() if one.node not in self._nodes}
        for attempt in gone:
            self.overdue(attempt)
        return [
            Answer(attempt=attempt, error=LostError(f"node {one.node[:8]} of the cluster is gone"))
            for attempt, one in gone.items()
        ]

    def _look(self) -> None:
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            self._nodes, self._looked_at = _alive_nodes(), time.monotonic()

    def _free(self) -> Counter[str]:
        """Cores of each node that no attempt of ours takes."""
        free = Counter({name: node.cores for name, node in self._nodes.items()})
        for one in self._running.values():
            if one.node in free:
                free[one.node] -= one.cores
        return free

    def _host(self, node: str) -> str:
        return self._nodes[node].host if node in self._nodes else f"node {node[:8]}"


_loaded: dict[str, Any] = {}
"""On a node: the work of the run that this process last worked for, by the run's key."""


@ray.remote
def _attempt(attempt: int, work: bytes, key: str, task: bytes, limit_s: float) -> bytes:
    """One attempt, in a process of a node; what it says, pickled."""
    end = threading.Timer(limit_s, os._exit, (1,))
    end.daemon = True
    end.start()

    def loaded() -> Any:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = pickle.loads(work)
        return _loaded[key]

    try:
        return told(attempt, loaded, task)
    finally:
        end.cancel()


def _connect(address: str, name: str) -> None:
    """Be a driver of the cluster, until this process ends. Raises ValueError if there is none."""
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address and here != address:
            raise ValueError(f"engine {name}: one cluster for this process required, found it connected to {here}")
        return
    head = address or variables().get("RAY_ADDRESS", "")
    try:
        if RAY_ADDRESS.fullmatch(head):  # Ray itself would try for minutes
            host, _, port = head.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"engine {name}: a running cluster with a node on this host required, found {error}. Start one with `ray "
            "start` (docs/scale.md); one machine alone is better served by engine='processes'"
        ) from error


def _alive_nodes() -> dict[str, _Node]:
    """Nodes by their id, those with a core to work on."""
    found = {}
    for one in ray.nodes():
        resources = one.get("Resources", {})
        cores = int(resources.get("CPU", 0))
        if one["Alive"] and cores > 0:
            found[one["NodeID"]] = _Node(
                one["NodeManagerAddress"], cores, float(resources.get("memory", math.inf)) / cores
            )
    return found


def _is_here(host: str) -> bool:
    """Whether this host has the address: only then can it be listened on."""
    try:
        family, kind, protocol, _, at = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as one:
            one.bind(at)
    except OSError:
        return False
    return True


def _refuse_open_cluster(name: str, others: Sequence[str]) -> None:
    """Raise ValueError if the head of a cluster of several hosts answers a caller who has no token.

    A node without the token cannot join one that does not, so that asking the head is enough.
    """
    stranger = {key: value for key, value in variables().items() if not key.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", _STRANGER, ray.get_runtime_context().gcs_address],
        env={**stranger, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        timeout=60,
    )
    if done.returncode == 0:
        raise ValueError(
            f"engine {name}: token authentication of a cluster of several hosts ({', '.join(others[:4])}, and this "
            "one) required, found that its head answers without: whoever reaches its ports runs code on every node. "
            "Set RAY_AUTH_MODE=token and one token on all nodes, and start it again (docs/scale.md)"
        )


_STRANGER = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"session_name", b"session", 10)
"""
"""Asks a head what every driver asks first; without an error, it answered."""


def _cancel(ref: Any) -> None:
    with suppress(RayError, ValueError):
        ray.cancel(ref, force=True)
