"""Ranking over HTTP: what a request costs a server, how long it waits, what it weighs on the wire.

    python -m benchmarks.serving_http [--only cost plumbing router latency wire] [--seconds 30] [--trial]

A variant is a server process on the machine's first core, the client a process on its last. Histories are in the
server's store, and users come back with two new events (the traffic of `benchmarks.serving`). CPU time is that of the
server's process, all its threads, over the requests it answered; variants take turns. Logits of all variants agree, and
the deterministic mode's bits do not depend on the others in a step, before anything is timed. About 14 minutes;
rows of what was measured are replaced in `benchmarks/results/serving_http.jsonl`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.interleaved import line
from benchmarks.record import write_results
from benchmarks.serving import USERS, Traffic
from benchmarks.serving_http_latency import latency
from benchmarks.serving_http_load import LoadClient, http_request
from benchmarks.serving_http_process import Process, cpu_of, filled_store, row, stored
from benchmarks.serving_http_wire import wire
from reqdedup.serving.names import ARROW, JSON
from reqdedup.serving.requests import RankRequest
from reqdedup.serving.routing import worker_of

Row = dict[str, Any]
CONNECTIONS = 8
RELATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """shapes: (longest history, candidates, requests of a naive round: 0 for none).  rounds: of every comparison.
    requests: of a round.  once: requests of a round that computes its context.  plain: requests without a model.
    seconds: of a rate of the open loop.
    """

    shapes: tuple[tuple[int, int, int], ...] = (
        (512, 10, 2),
        (512, 100, 2),
        (512, 500, 1),
        (2048, 10, 1),
        (2048, 100, 0),
    )
    rounds: int = 5
    requests: int = 64
    once: int = 24
    plain: int = 1000
    seconds: float = 30.0


TRIAL = Sizes(shapes=((64, 4, 1),), rounds=2, requests=8, once=4, plain=20, seconds=0.5)
GOALS = {(512, 10): (4.5, 3.0), (512, 100): (2.0, 1.6), (2048, 10): (9.0, 6.0), (2048, 100): (3.4, 2.5)}
"""(longest history, candidates) -> what fast and deterministic must reach against the context once per request."""
PRICE = {(512, 100): 1.3}
"""Deterministic over fast at most; 1.5 for all others."""


def cost(folder: Path, load: LoadClient, sizes: Sizes) -> Iterator[Row]:
    """CPU of a request beside the context once per request, the naive model and a server written by hand."""
    for length, candidates, naive in sizes.shapes:
        store = filled_store(folder, length, 16 * length)
        traffic = Traffic(max_history=length, candidates=candidates)
        names = ["fast", "deterministic", "by_hand", "once", *(["naive"] if naive else [])]
        with ExitStack() as stack:
            processes = {name: stack.enter_context(Process.of(name, length, store)) for name in names}
            check(processes, stored(traffic.requests(3)))
            check_bits(processes["deterministic"], stored(traffic.every_user()[:CONNECTIONS]))
            warm = stored(traffic.every_user())
            for name in names[:3]:
                cpu_of(processes[name], load, warm, CONNECTIONS)
            found: dict[str, list[float]] = {}
            for number in range(sizes.rounds):
                requests = stored(traffic.requests(sizes.requests))
                turns = [
                    ("fast", "fast", requests, CONNECTIONS),
                    ("fast, one at a time", "fast", stored(traffic.requests(sizes.requests)), 1),
                    ("deterministic", "deterministic", requests, CONNECTIONS),
                    ("by_hand", "by_hand", requests, CONNECTIONS),
                    ("once", "once", requests[: sizes.once], CONNECTIONS),
                    *([("naive", "naive", requests[:naive], 1)] if naive else []),
                ]
                for name, process, sent, connections in turns if number % 2 == 0 else turns[::-1]:
                    if name == "naive" and number >= 3:
                        continue
                    found.setdefault(name, []).append(cpu_of(processes[process], load, sent, connections))
        yield from cost_rows(found, length, candidates)


def cost_rows(found: dict[str, list[float]], length: int, candidates: int) -> Iterator[Row]:
    fast, exact = GOALS.get((length, candidates), (None, None))
    price = PRICE.get((length, candidates), 1.5)
    compared: list[tuple[str, str, float | None]] = [
        ("once", "fast", fast),
        ("once", "fast, one at a time", None),
        ("once", "deterministic", exact),
        ("fast", "deterministic", 1 / price),
        ("by_hand", "fast", 0.97),
        ("naive", "once", 50.0 if (length, candidates) == (512, 100) else None),
        ("naive", "fast, one at a time", None),
        ("naive", "fast", 100.0 if (length, candidates) == (512, 100) else None),
    ]
    for theirs, ours, target in compared:
        if theirs not in found:
            continue
        ratios = [base / own for base, own in zip(found[theirs], found[ours], strict=False)]
        yield row(
            f"http cost, L {length}, {candidates} candidates, beside {theirs}",
            ours,
            statistics.median(ratios),
            f"x less CPU time than {theirs}",
            target,
            spread=[min(ratios), max(ratios)],
            runs=len(ratios),
            sizes={"history": length, "candidates": candidates, "users": USERS, "connections": CONNECTIONS},
            seconds={"ours": statistics.median(found[ours]), theirs: statistics.median(found[theirs])},
        )


def check(processes: dict[str, Process], requests: Sequence[RankRequest]) -> None:
    """Raises ValueError unless all variants give the same logits, up to rounding."""
    for request in requests:
        logits = {name: process.client().rank(request).logits["click"] for name, process in processes.items()}
        first = logits["fast"]
        for name, other in logits.items():
            if np.abs(other - first).max() > RELATIVE_TOLERANCE * max(1.0, float(np.abs(first).max())):
                raise ValueError(f"{name}: logits of the others required, found others for user {request.user_id}")


def check_bits(process: Process, requests: Sequence[RankRequest]) -> None:
    """Raises ValueError unless requests give the same bits together as alone and kept, in both bodies."""

    def bits(request: RankRequest) -> bytes:
        return process.client().rank(request).logits["click"].tobytes()

    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(bits, requests))
    arrow = [process.client("arrow").rank(one).logits["click"].tobytes() for one in requests]
    if together != [bits(one) for one in requests] or together != arrow:
        raise ValueError("deterministic: the same bits alone and in a step required, found others")


def plumbing(folder: Path, load: LoadClient, sizes: Sizes) -> Iterator[Row]:
    """CPU of everything but the model: reading, checking, queueing, writing; beside a bare ASGI application that parses
    and answers, and as a share of a request with a model (fast, contexts kept, steps of several)."""
    length, candidates, _ = max(sizes.shapes, key=lambda shape: shape[1] == 100)
    store = filled_store(folder, length, 16 * length)
    traffic = Traffic(max_history=length, candidates=candidates)
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(Process.of(name, length, store)) for name in ("plumbing", "bare", "fast")
        }
        cpu_of(processes["fast"], load, stored(traffic.every_user()), CONNECTIONS)
        found: dict[tuple[str, str, int], list[float]] = {}
        whole = []
        for _ in range(sizes.rounds + 1):
            requests = stored(traffic.requests(sizes.plain))
            whole.append(cpu_of(processes["fast"], load, stored(traffic.requests(sizes.requests)), CONNECTIONS))
            for kind in (JSON, ARROW):
                sent = [http_request(one, kind) for one in requests]
                for name in ("plumbing", "bare"):
                    for connections in (1, CONNECTIONS):
                        before = processes[name].cpu_s()
                        load.closed(processes[name].url, sent, connections)
                        took = (processes[name].cpu_s() - before) / len(sent)
                        found.setdefault((name, kind, connections), []).append(took)
    for kind, body in ((JSON, "json"), (ARROW, "arrow")):
        for connections in (1, CONNECTIONS):
            ours, bare = (1000 * np.array(found[name, kind, connections][1:]) for name in ("plumbing", "bare"))
            yield row(
                f"http plumbing, {candidates} candidates",
                f"{body}, {connections} connections",
                float(np.median(ours)),
                "ms of CPU a request without a model",
                spread=[float(ours.min()), float(ours.max())],
                runs=len(ours),
                most=0.15,
                bare_ms=float(np.median(bare)),
                share=float(np.median(ours)) / (1000 * statistics.median(whole[1:])),
                sizes={"history": length, "candidates": candidates},
            )


def router(folder: Path, load: LoadClient, sizes: Sizes) -> Iterator[Row]:
    """What the router adds to a request, without a model: its CPU, and the time of a client with one connection."""
    length, candidates, _ = max(sizes.shapes, key=lambda shape: shape[1] == 100)
    store = filled_store(folder, length, 16 * length)
    traffic = Traffic(max_history=length, candidates=candidates)
    with ExitStack() as stack:
        workers = [stack.enter_context(Process.of("plumbing", length, store)) for _ in range(2)]
        front = stack.enter_context(Process("router", *(worker.url for worker in workers)))
        found: dict[str, list[tuple[float, float]]] = {"direct": [], "user in a header": [], "user in the body": []}
        for _ in range(sizes.rounds + 1):
            requests = stored(traffic.requests(sizes.plain))
            first = [one for one in requests if worker_of(one.user_id, 2) == 0]
            direct = load.closed(workers[0].url, [http_request(one) for one in first], 1)
            found["direct"].append((0.0, float(np.median(direct.ms))))
            for name in ("user in a header", "user in the body"):
                sent = [http_request(one, names_user=name == "user in a header") for one in requests]
                before = front.cpu_s()
                answers = load.closed(front.url, sent, 1)
                found[name].append(((front.cpu_s() - before) / len(sent), float(np.median(answers.ms))))
    direct_ms = statistics.median(ms for _, ms in found.pop("direct")[1:])
    for name, runs in found.items():
        cpu = [1000 * one for one, _ in runs[1:]]
        yield row(
            "http router",
            name,
            statistics.median(cpu),
            "ms of CPU a request in the router",
            spread=[min(cpu), max(cpu)],
            runs=len(cpu),
            p50_ms=statistics.median(ms for _, ms in runs[1:]),
            direct_p50_ms=direct_ms,
            sizes={"candidates": candidates, "connections": 1, "workers": 2},
        )


def main(argv: list[str] | None = None) -> int:
    claims = ("cost", "plumbing", "router", "latency", "wire")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_http", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=claims, help="some of the claims; rows of the others stay")
    parser.add_argument("--seconds", type=float, help="of each rate of the open loop (default 30)")
    parser.add_argument("--trial", action="store_true", help="sizes that say whether it runs; nothing is recorded")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    sizes = TRIAL if arguments.trial else Sizes()
    seconds = sizes.seconds if arguments.seconds is None else arguments.seconds
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, LoadClient() as load:
        folder = Path(name)
        measured: dict[str, Callable[[], Iterator[Row]]] = {
            "cost": lambda: cost(folder, load, sizes),
            "plumbing": lambda: plumbing(folder, load, sizes),
            "router": lambda: router(folder, load, sizes),
            "latency": lambda: latency(folder, load, sizes.shapes, seconds),
            "wire": wire,
        }
        for claim in arguments.only or claims:
            for one in measured[claim]():
                rows.append(one)
                print(f"{one['variant']:<24} {line(one)}", flush=True)
    if not arguments.trial:
        replaced = tuple(f"http {'bytes' if claim == 'wire' else claim}" for claim in arguments.only or claims)
        print(write_results("serving_http", rows, replaced=replaced))
    return 0


if __name__ == "__main__":
    sys.exit(main())
