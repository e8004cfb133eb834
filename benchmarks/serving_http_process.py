"""Servers of the HTTP benchmarks in processes of their own, the timelines in their store, and what they cost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.serving import USERS
from benchmarks.serving_http_load import LoadClient, http_request
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import UserRecord
from reqdedup.serving.client import Client
from reqdedup.serving.requests import RankRequest


class Process:
    """A server of one variant; `url` waits until it listens. wait_ms: bound of its queue; by default one that none of
    the closed loops reaches."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "benchmarks.serving_http_servers", *map(str, words)]
        self._name, self._url = str(words[0]), ""
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @classmethod
    def of(cls, variant: str, length: int, store: Path, *, wait_ms: float = 10_000.0) -> Process:
        return cls(variant, length, store, wait_ms)

    @property
    def url(self) -> str:
        if not self._url:
            assert self._process.stdout is not None
            self._url = self._process.stdout.readline().strip()
        if not self._url:
            raise RuntimeError(f"{self._name}: a server required, found one that ended")
        return self._url

    def client(self, body: Literal["json", "arrow"] = "json") -> Client:
        return Client(self.url, trims=False, retries=50, body=body)

    def value(self, name: str) -> float:
        lines = self.client().get("/metrics").decode().splitlines()
        return sum(float(one.rpartition(" ")[2]) for one in lines if one.startswith(name))

    def cpu_s(self) -> float:
        """All its threads, by the process's own clock (Linux: see clock_getcpuclockid)."""
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


def cpu_of(process: Process, load: LoadClient, requests: Sequence[RankRequest], connections: int) -> float:
    """CPU seconds of the server per request, `connections` at once."""
    sent = [http_request(one) for one in requests]
    before = process.cpu_s()
    load.closed(process.url, sent, connections)
    return (process.cpu_s() - before) / len(sent)


def filled_store(folder: Path, length: int, events: int) -> Path:
    """Timelines of so many events, more than any moment of the traffic needs."""
    path = folder / f"users_{length}_{events}.db"
    if not path.exists():
        store = SqliteStore(path, {"item_id": "int64", "action": "int32"})
        token = np.arange(events)
        store.fill((_record(user, token) for user in range(USERS)), source={"benchmark": 1})
        store.close()
    return path


def _record(user: int, token: np.ndarray) -> UserRecord:
    item_id = token * 7919 + user * 1_000_003
    columns = {"item_id": item_id, "action": (item_id % 8).astype(np.int32)}
    return UserRecord(user_id=user, timelines={0: (0, columns)}, features={})


def stored(requests: Sequence[RankRequest]) -> list[RankRequest]:
    """The same, their histories in the store."""
    return [replace(one, history=None, at=one.history.end) for one in requests if one.history is not None]


def row(claim: str, variant: str, value: float, unit: str, target: float | None = None, **more: Any) -> dict[str, Any]:
    return {"claim": claim, "variant": variant, "value": value, "unit": unit, "target": target, **more}
