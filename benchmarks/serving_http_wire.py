"""What a request weighs: 500 candidates, 200 request and 300 item features, of which the model reads half.

    everything per candidate   JSON, a row per candidate with all features; read into the columns of the model
    once                       ours: request features once, candidates by column
    once and trimmed           ours: what the model reads, as our client sends it: JSON, or Arrow for machines

CPU is of both sides: writing, and reading as the server does, checks included (the baseline is read without checks).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson

from benchmarks.serving_http_load import arrow_body, json_body
from benchmarks.serving_http_process import row
from reqdedup.schema import Column, Level
from reqdedup.serving.limits import Limits
from reqdedup.serving.requests import RankRequest
from reqdedup.serving.wire import arrow, bodies
from reqdedup.serving.wire.bodies import Inputs

CANDIDATES, REQUEST_FEATURES, ITEM_FEATURES, ROUNDS = 500, 200, 300, 7


def wire() -> Iterator[dict[str, Any]]:
    """Bytes and CPU against everything per candidate. Raises ValueError unless all are read as the same values."""
    rng = np.random.default_rng(0)
    request = {f"r{i}": float(x) for i, x in enumerate(rng.random(REQUEST_FEATURES).astype(np.float32))}
    items = {f"i{i}": rng.random(CANDIDATES).astype(np.float32) for i in range(ITEM_FEATURES)}
    candidates: dict[str, np.ndarray] = {"item_id": rng.integers(0, 2**40, CANDIDATES), **items}
    whole = RankRequest(user_id=1, candidates=candidates, request=request)
    reads = [*list(request)[: REQUEST_FEATURES // 2], *list(items)[: ITEM_FEATURES // 2]]
    trimmed = RankRequest(
        user_id=1,
        candidates={name: one for name, one in candidates.items() if name == "item_id" or name in reads},
        request={name: one for name, one in request.items() if name in reads},
    )
    inputs = Inputs(
        request={name: Column(name=name, dtype="float32", level=Level.REQUEST) for name in trimmed.request},
        item={name: Column(name=name, dtype="float32", level=Level.ITEM) for name in reads if name in items},
    )
    # float32 in their own digits, as ours: as float64 they would have twice as many
    shared = {name: np.float32(one) for name, one in request.items()}
    rows = [
        {"item_id": candidates["item_id"][i], **shared, **{name: one[i] for name, one in items.items()}}
        for i in range(CANDIDATES)
    ]

    def write_rows() -> bytes:
        return orjson.dumps({"user_id": 1, "candidates": rows}, option=orjson.OPT_SERIALIZE_NUMPY)

    def read_rows(body: bytes) -> dict[str, np.ndarray]:
        found = orjson.loads(body)["candidates"]
        return {name: np.array([one[name] for one in found], np.float32) for name in reads}

    def read_json(body: bytes) -> dict[str, np.ndarray]:
        found: RankRequest = bodies.rank_request(bodies.parse_object(body), inputs, Limits()).request
        return dict(found.candidates)

    def read_arrow(body: bytes) -> dict[str, np.ndarray]:
        found: RankRequest = arrow.rank_request_of(body, inputs, Limits()).request
        return dict(found.candidates)

    variants: dict[str, tuple[Callable[[], bytes], Callable[[bytes], dict[str, np.ndarray]]]] = {
        "everything per candidate": (write_rows, read_rows),
        "once, JSON": (lambda: json_body(whole), read_json),
        "once, Arrow": (lambda: arrow_body(whole), read_arrow),
        "once and trimmed, JSON": (lambda: json_body(trimmed), read_json),
        "once and trimmed, Arrow": (lambda: arrow_body(trimmed), read_arrow),
    }
    size, cpu = {}, {}
    for name, (write, read) in variants.items():
        body = write()
        size[name], found = len(body), read(body)
        if not all(np.array_equal(found[one], items[one]) for one in inputs.item):
            raise ValueError(f"{name}: the values that were sent required, found others")
        took = []
        for _ in range(ROUNDS):
            started = time.process_time()
            read(write())
            took.append(time.process_time() - started)
        cpu[name] = statistics.median(took)
    base = "everything per candidate"
    for name in list(variants)[1:]:
        yield row(
            f"http bytes, {CANDIDATES} candidates",
            name,
            size[base] / size[name],
            f"x fewer bytes than {base}",
            12.0 if name == "once and trimmed, Arrow" else None,
            bytes=size[name],
            cpu=cpu[name] / cpu[base],
            most_cpu=0.5,
            sizes={
                "candidates": CANDIDATES,
                "request_features": REQUEST_FEATURES,
                "item_features": ITEM_FEATURES,
                "read": 0.5,
            },
        )
