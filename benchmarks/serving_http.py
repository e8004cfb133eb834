"""Ranking over HTTP: what a request costs a server, what waits at 70% of saturation, what a request weighs on the wire.

    python -m benchmarks.serving_http [--only cost plumbing] [--seconds 30]

Each variant is a server process of its own on one core; the client runs on another. Histories are in the server's
store, and users come back with two new events (the traffic of `benchmarks.serving`). CPU time is that of the server's
process, all its threads, over the requests it answered; variants take turns. Logits of all variants agree before
anything is timed. A run of everything replaces `benchmarks/results/serving_http.jsonl`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import torch

from benchmarks.interleaved import line
from benchmarks.record import write_results
from benchmarks.serving import USERS, Traffic
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import UserRecord
from reqdedup.serving.client import Client
from reqdedup.serving.requests import RankRequest

Row = dict[str, Any]
ROUNDS, CONNECTIONS = 3, 8
BODIES: tuple[Literal["json", "arrow"], ...] = ("json", "arrow")
RELATIVE_TOLERANCE = 1e-4


class Process:
    """A server of one variant."""

    def __init__(self, variant: str, length: int, store: Path, *, waiting: int = 64) -> None:
        words = [
            sys.executable,
            "-m",
            "benchmarks.serving_http_servers",
            variant,
            str(length),
            str(store),
            str(waiting),
        ]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"{variant}: a server required, found one that ended")

    def client(self, *, retries: int = 50) -> Client:
        return Client(self.url, trims=False, retries=retries)

    def value(self, name: str) -> float:
        lines = self.client().get("/metrics").decode().splitlines()
        return sum(float(one.rpartition(" ")[2]) for one in lines if one.startswith(name))

    def cpu_s(self) -> float:
        return self.value("process_cpu_seconds_total")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()


def filled_store(folder: Path, length: int, users: int = USERS) -> Path:
    """Timelines that every moment of the traffic is a window of."""
    path = folder / f"users_{length}.db"
    if not path.exists():
        store = SqliteStore(path, {"item_id": "int64", "action": "int32"})
        token = np.arange(8 * length)
        store.fill(
            (
                UserRecord(
                    user_id=user,
                    timelines={0: (0, {"item_id": token * 7919 + user * 1_000_003, "action": actions(token, user)})},
                    features={},
                )
                for user in range(users)
            ),
            source={"benchmark": 1},
        )
        store.close()
    return path


def actions(token: np.ndarray, user: int) -> np.ndarray:
    return ((token * 7919 + user * 1_000_003) % 8).astype(np.int32)


def sent(requests: Sequence[RankRequest]) -> list[RankRequest]:
    """The same, their histories in the store."""
    return [replace(one, history=None, at=one.history.end) for one in requests if one.history is not None]


def closed_loop(process: Process, requests: Sequence[RankRequest], connections: int = CONNECTIONS) -> float:
    """CPU seconds of the server per request, `connections` at once."""
    local = threading.local()

    def ask(request: RankRequest) -> None:
        client = vars(local).setdefault("client", process.client())
        client.rank(request)

    before = process.cpu_s()
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(ask, requests))
    return (process.cpu_s() - before) / len(requests)


def check(processes: dict[str, Process], requests: Sequence[RankRequest]) -> None:
    """Raises ValueError unless all variants give the same logits, up to rounding."""
    for request in requests:
        logits = {name: process.client().rank(request).logits["click"] for name, process in processes.items()}
        first = logits["fast"]
        for name, other in logits.items():
            if np.abs(other - first).max() > RELATIVE_TOLERANCE * max(1.0, float(np.abs(first).max())):
                raise ValueError(f"{name}: logits of the others required, found others for user {request.user_id}")


def cost(folder: Path) -> list[Row]:
    """CPU of a request beside the context once per request, the naive model and a server written by hand."""
    rows: list[Row] = []
    for length, candidates, target in ((512, 100, 2.0), (512, 10, 4.5), (2048, 10, 9.0), (2048, 100, 3.4)):
        store = filled_store(folder, length)
        names = ["fast", "deterministic", "once", "by_hand"]
        processes = {name: Process(name, length, store) for name in names}
        traffic = Traffic(max_history=length, candidates=candidates)
        try:
            check(processes, sent(traffic.requests(3)))
            warm = sent(traffic.every_user())
            for name in ("fast", "deterministic", "by_hand"):
                closed_loop(processes[name], warm)
            found: dict[str, list[float]] = {name: [] for name in names}
            for number in range(ROUNDS):
                requests = sent(traffic.requests(80))
                for name in names if number % 2 == 0 else names[::-1]:
                    found[name].append(closed_loop(processes[name], requests))
            sizes = {"history": length, "candidates": candidates, "users": USERS, "connections": CONNECTIONS}
            rows.append(_ratio("http_kept", found["once"], found["fast"], "once per request", sizes, target))
            rows.append(_ratio("http_deterministic", found["fast"], found["deterministic"], "fast mode", sizes, None))
            rows.append(_ratio("http_by_hand", found["by_hand"], found["fast"], "by hand", sizes, 0.97))
            if (length, candidates) == (512, 100):
                with Process("naive", length, store) as naive:
                    slow = [closed_loop(naive, sent(traffic.requests(2)), 1) for _ in range(ROUNDS)]
                rows.append(_ratio("http_naive", slow, found["fast"], "naive per candidate", sizes, 100.0))
                rows.append(_ratio("http_naive_once", slow, found["once"], "naive per candidate, once", sizes, 50.0))
        finally:
            for process in processes.values():
                process.__exit__()
    return rows


def _ratio(claim: str, baseline: list[float], ours: list[float], name: str, sizes: Row, target: float | None) -> Row:
    ratios = [theirs / own for theirs, own in zip(baseline, ours, strict=True)]
    return {
        "claim": claim,
        "variant": " ".join(f"{key}={value}" for key, value in sizes.items() if key in ("history", "candidates")),
        "value": statistics.median(ratios),
        "unit": f"x less CPU time than {name}",
        "target": target,
        "spread": [min(ratios), max(ratios)],
        "runs": len(ratios),
        "sizes": sizes,
        "seconds": {"ours": statistics.median(ours), name: statistics.median(baseline)},
    }


def plumbing(folder: Path) -> list[Row]:
    """CPU of everything but the step: reading, checking, queueing, writing; one connection."""
    rows = []
    traffic = Traffic(max_history=512, candidates=100)
    with Process("fast", 512, filled_store(folder, 512)) as process:
        closed_loop(process, sent(traffic.every_user()))
        for body in BODIES:
            client = Client(process.url, trims=False, body=body)
            found, shares = [], []
            for _ in range(ROUNDS):
                requests = sent(traffic.requests(200))
                cpu, inside = process.cpu_s(), process.value("reqdedup_step_cpu_seconds_total")
                for request in requests:
                    client.rank(request)
                cpu, inside = process.cpu_s() - cpu, process.value("reqdedup_step_cpu_seconds_total") - inside
                found.append(1000 * (cpu - inside) / len(requests))
                shares.append((cpu - inside) / cpu)
            rows.append(
                {
                    "claim": "http_plumbing",
                    "variant": body,
                    "value": statistics.median(found),
                    "unit": "ms of CPU a request beside the step",
                    "target": None,
                    "spread": [min(found), max(found)],
                    "runs": ROUNDS,
                    "share": statistics.median(shares),
                    "sizes": {"history": 512, "candidates": 100},
                }
            )
    return rows


def open_loop(process: Process, requests: Sequence[RankRequest], rate: float) -> tuple[list[float], int]:
    """Requests sent at their times, whatever became of those before: ms of the answered ones, and how many were
    refused."""
    local, took, refused = threading.local(), [], []
    begin = time.monotonic() + 0.1

    def ask(number: int) -> None:
        client = vars(local).setdefault("client", process.client(retries=0))
        due = begin + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            client.rank(requests[number])
            took.append(1000 * (time.monotonic() - due))
        except RuntimeError:
            refused.append(number)

    with ThreadPoolExecutor(200) as pool:
        list(pool.map(ask, range(len(requests))))
    return took, len(refused)


def latency(folder: Path, seconds: float) -> list[Row]:
    """p50 and p99 at 70% of the highest rate with under 0.1% refused, and at three times that rate."""
    traffic = Traffic(max_history=512, candidates=100)
    rows: list[Row] = []
    with Process("deterministic", 512, filled_store(folder, 512)) as process:
        closed_loop(process, sent(traffic.every_user()))
        started = time.monotonic()
        requests = sent(traffic.requests(300))
        closed_loop(process, requests)
        rate = 0.5 * len(requests) / (time.monotonic() - started)
        saturation, at_saturation = rate, [0.0]
        while True:
            took, refused = open_loop(process, sent(traffic.requests(int(rate * max(3.0, seconds / 4)))), rate)
            if refused > 0.001 * (len(took) + refused):
                break
            saturation, at_saturation, rate = rate, took, rate * 1.15
        for name, share in (("70%", 0.7), ("3x", 3.0)):
            memory = process.value("process_resident_memory_bytes")
            wanted = saturation * share
            took, refused = open_loop(process, sent(traffic.requests(int(wanted * seconds))), wanted)
            p50, p99 = np.percentile(took, [50, 99])
            rows.append(
                {
                    "claim": "http_latency",
                    "variant": f"{name} of saturation",
                    "value": float(p99),
                    "unit": "ms, p99 of the answered",
                    "target": None,
                    "p50": float(p50),
                    "p99_at_saturation": float(np.percentile(at_saturation, 99)),
                    "rate": wanted,
                    "answered": len(took),
                    "refused": refused,
                    "grown_bytes": process.value("process_resident_memory_bytes") - memory,
                    "sizes": {"history": 512, "candidates": 100, "seconds": seconds},
                }
            )
    return rows


def wire(folder: Path) -> list[Row]:
    """Bytes and CPU of a request of 500 candidates with 200 request and 300 item features, of which half are read:
    everything per candidate against once per request and trimmed."""
    rng = np.random.default_rng(0)
    request = {f"r{i}": float(x) for i, x in enumerate(rng.random(200).astype(np.float32))}
    items = {f"i{i}": rng.random(500).astype(np.float32) for i in range(300)}
    ids = rng.integers(0, 2**40, 500)

    def everything() -> int:
        rows = [
            {"item_id": int(ids[i]), **request, **{name: float(one[i]) for name, one in items.items()}}
            for i in range(len(ids))
        ]
        body = orjson.dumps({"user_id": 1, "candidates": rows})
        orjson.loads(body)
        return len(body)

    def once(names: int, numbers: int) -> int:
        kept = dict(list(request.items())[:names])
        columns = {"item_id": ids, **dict(list(items.items())[:numbers])}
        values = {"user_id": 1, "request": kept, "candidates": columns}
        body = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
        orjson.loads(body)
        return len(body)

    variants: dict[str, Callable[[], int]] = {
        "per candidate": everything,
        "once per request": lambda: once(200, 300),
        "once and trimmed": lambda: once(100, 150),
    }
    found = {}
    for name, run in variants.items():
        started = time.process_time()
        written = [run() for _ in range(5)]
        found[name] = (max(written), (time.process_time() - started) / 5)
    sizes = {"candidates": 500, "request_features": 200, "item_features": 300, "read": 0.5}
    size, cpu = found["per candidate"]
    return [
        {"claim": "wire_bytes", "variant": name, "value": size / one, "unit": "x fewer bytes than per candidate"}
        | {"target": None, "cpu": seconds / cpu, "bytes": one, "sizes": sizes}
        for name, (one, seconds) in found.items()
        if name != "per candidate"
    ]


def main(argv: list[str] | None = None) -> int:
    claims = ("cost", "plumbing", "latency", "wire")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_http", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=claims, help="some of the claims; nothing is recorded then")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each rate of the open loop")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, Callable[[], list[Row]]] = {
            "cost": lambda: cost(folder),
            "plumbing": lambda: plumbing(folder),
            "latency": lambda: latency(folder, arguments.seconds),
            "wire": lambda: wire(folder),
        }
        for claim in arguments.only or claims:
            for row in measured[claim]():
                rows.append(row)
                print(line(row), flush=True)
    if arguments.only is None:
        print(write_results("serving_http", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
