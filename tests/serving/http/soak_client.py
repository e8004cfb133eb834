"""A client's process of the soak: prepared bodies over kept connections, every answer compared with the right bits."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import orjson
import pyarrow as pa
import uvloop

ATTEMPTS = 400
"""Of one request: a worker that was killed takes seconds to load, and the machine may have others to run."""


@dataclass(frozen=True)
class Prepared:
    """url: of who is asked.  head_and_body: of the request, bodies of Arrow too.  right: of each model, the logits."""

    url: str
    head_and_body: bytes
    right: Mapping[str, bytes]


@dataclass
class Outcome:
    """right, wrong, said (an error): requests.  again: attempts beside the first.  busy: seconds in which one ended."""

    counts: Counter[str] = field(default_factory=Counter)
    busy: set[int] = field(default_factory=set)
    last_error: str = ""


def run(prepared: Sequence[Sequence[Prepared]], requests: int, connections: int, seconds: float, seed: int) -> Outcome:
    """Ask so many of them, drawn at random, at most so long.

    prepared: those of each worker; a connection asks one worker, so that one that is being started again does not hold
    up who asks the others.
    """
    return uvloop.run(_run(prepared, requests, connections, seconds, seed))


async def _run(
    prepared: Sequence[Sequence[Prepared]], requests: int, connections: int, seconds: float, seed: int
) -> Outcome:
    outcome, rng, started = Outcome(), random.Random(seed), time.monotonic()
    left = iter(range(requests))

    async def one_after_the_other(of_worker: Sequence[Prepared]) -> None:
        kept: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        for _ in left:
            if time.monotonic() - started > seconds:
                break
            outcome.counts["sent"] += 1
            outcome.counts[await _ask(rng.choice(of_worker), kept, outcome)] += 1
            outcome.busy.add(int(time.monotonic() - started))
        for _, writer in kept.values():
            writer.close()

    await asyncio.gather(*(one_after_the_other(prepared[one % len(prepared)]) for one in range(connections)))
    return outcome


async def _ask(
    one: Prepared, kept: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]], outcome: Outcome
) -> str:
    for attempt in range(ATTEMPTS):
        if attempt:
            outcome.counts["again"] += 1
            await asyncio.sleep(0.2 * (0.5 + random.random()))
        try:
            if one.url not in kept:
                host, port = one.url.removeprefix("http://").split(":")
                kept[one.url] = await asyncio.open_connection(host, int(port))
            reader, writer = kept[one.url]
            writer.write(one.head_and_body)
            async with asyncio.timeout(30):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        except (OSError, EOFError, TimeoutError) as error:
            outcome.last_error = repr(error)
            with suppress(KeyError):
                kept.pop(one.url)[1].close()
            continue
        status = int(head.split(b" ", 2)[1])
        if status == 200:
            model, logits = _read(body)
            return "right" if one.right[model] == logits else "wrong"
        outcome.last_error = f"{status}: {body[:300]!r}"
        if status != 503:
            break
    return "said"


def _read(body: bytes) -> tuple[str, bytes]:
    """The model and its logits."""
    if body.startswith(b"{"):
        values = orjson.loads(body)
        logits = values["logits"].values()
        return values["model"], b"".join(np.array(one, np.float64).astype(np.float32).tobytes() for one in logits)
    with pa.ipc.open_stream(body) as reader:
        batch = reader.read_next_batch()
        model = orjson.loads(reader.schema.metadata[b"reqdedup.answer"])["model"]
    return model, b"".join(column.to_numpy().tobytes() for column in batch.columns)
