"""A small log with every awkward shape, made request by request in plain numpy: the storage tests' own input."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from reqdedup.dedup.encoding import BLOB_TYPE, blobs_from_numpy, deduplicated_schema
from reqdedup.schema import Column, EngagementSchema, Kind, Level

DAY_US = 86_400_000_000
START_US = 1_760_000_000_000_000


def column(name: str, dtype: str, level: Level, **options: object) -> Column:
    return Column(name=name, dtype=dtype, level=level, doc=f"{name} of the test log", **options)  # type: ignore[arg-type]


def log_schema(*, vector_width: int = 4) -> EngagementSchema:
    return EngagementSchema(
        (
            column("user_id", "int64", Level.KEY),
            column("request_id", "int64", Level.KEY),
            column("item_id", "int64", Level.KEY),
            column("request_ts", "timestamp", Level.REQUEST),
            column("user_key", "string", Level.REQUEST, nullable=True),
            column("history_item_id", "int64", Level.REQUEST, kind=Kind.SEQUENCE),
            column("history_action", "int32", Level.REQUEST, kind=Kind.SEQUENCE),
            column("history_ts", "int64", Level.REQUEST, kind=Kind.SEQUENCE),
            column("user_embedding", "float32", Level.REQUEST, kind=Kind.VECTOR, width=vector_width),
            column("device", "int32", Level.REQUEST),
            column("score", "float32", Level.REQUEST, nullable=True),
            column("item_category", "int32", Level.ITEM),
            column("item_key", "string", Level.ITEM, nullable=True),
            column("item_price", "float64", Level.ITEM, nullable=True),
            column("click", "int32", Level.LABEL, nullable=True),
        )
    )


def make_request(
    rng: np.random.Generator, user: int, request: int, *, fan_out: int, events: np.ndarray, day: int
) -> dict[str, object]:
    """One request: scalars, [L, 3] events (item, action, time), and its rows' items."""
    return {
        "user_id": user,
        "request_id": request,
        "request_ts": START_US + day * DAY_US + request,
        "user_key": None if user % 7 == 3 else f"nutzer-Ж{user}-用户",
        "events": events,
        "user_embedding": np.random.default_rng(abs(user)).normal(size=4).astype(np.float32),
        "device": int(rng.integers(0, 4)),
        "score": None if request % 5 == 0 else float(np.float32(rng.normal())),
        "items": rng.choice(2**40, size=fan_out, replace=False),
        "seed": int(rng.integers(0, 2**31)),
    }


def make_log(
    *, num_users: int = 20, seed: int = 0, max_history: int = 64, mean_fan_out: int = 12, max_requests: int = 4
) -> list[dict[str, object]]:
    """Requests of a small log: users whose histories grow from request to request; empty histories, single rows."""
    rng = np.random.default_rng(seed)
    requests, request_id = [], 1000 * (seed + 1)
    for user in rng.choice(np.arange(-(2**40), 2**40, 2**20), size=num_users, replace=False).tolist():
        length = int(rng.integers(0, max_history + 1)) if user % 3 else 0
        times = START_US // 1000 - np.sort(rng.integers(1, 10**10, size=length))[::-1]
        events = np.stack([rng.integers(0, 2**40, length), rng.integers(0, 8, length), times], axis=1)
        for _ in range(int(rng.integers(1, max_requests + 1))):
            request_id += 1
            fan_out = 1 if request_id % 6 == 0 else int(rng.integers(1, 2 * mean_fan_out))
            day = int(rng.integers(0, 3))
            requests.append(make_request(rng, user, request_id, fan_out=fan_out, events=events, day=day))
            new = np.stack([rng.integers(0, 2**40, 2), rng.integers(0, 8, 2), [START_US // 1000] * 2], axis=1)
            events = np.concatenate([events, new])[-max_history:] if max_history else events
    return requests


def to_batch(requests: list[dict[str, object]], *, rows: np.ndarray | None = None) -> pa.RecordBatch:
    """The deduplicated batch of these requests; `rows` picks and orders its rows."""
    schema = log_schema()
    request_of_row = np.repeat(np.arange(len(requests)), [len(request["items"]) for request in requests])  # type: ignore[arg-type]
    items = np.concatenate([request["items"] for request in requests])  # type: ignore[misc]
    draws = np.concatenate([np.random.default_rng(r["seed"]).random(len(r["items"])) for r in requests])  # type: ignore[arg-type]
    sequences = {"history_item_id": 0, "history_action": 1, "history_ts": 2}
    arrays: list[pa.Array] = []
    rows = np.arange(len(request_of_row)) if rows is None else rows
    for field in deduplicated_schema(schema):
        name = field.name
        if field.type == BLOB_TYPE:
            if name in sequences:
                values = [request["events"][:, sequences[name]] for request in requests]  # type: ignore[index]
            else:
                values = [request[name] for request in requests]  # type: ignore[misc]
            packed = np.concatenate(values).astype(
                {"int64": "<i8", "int32": "<i4", "float32": "<f4"}[schema[name].dtype]
            )
            blobs = blobs_from_numpy(packed, np.cumsum([0, *map(len, values)]))
            indices = pa.array(request_of_row[rows], pa.int32())
            arrays.append(pa.DictionaryArray.from_arrays(indices, blobs))
        elif name in ("user_id", "request_id") or schema[name].level is Level.REQUEST:
            values = pa.array([request[name] for request in requests], field.type)
            arrays.append(values.take(pa.array(request_of_row[rows])))
        elif name == "item_id":
            arrays.append(pa.array(items[rows]))
        else:
            arrays.append(row_values(name, draws[rows]))
    return pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(schema))


def row_values(name: str, draw: np.ndarray) -> pa.Array:
    """Item-level columns and labels, with nulls and non-ASCII strings, from a uniform draw per row."""
    if name == "item_category":
        return pa.array((draw * 9).astype(np.int32))
    if name == "item_key":
        return pa.array([None if x < 0.1 else f"ítem-{x:.3f}" for x in draw])
    if name == "item_price":
        return pa.array(draw * 100, mask=draw > 0.9)
    return pa.array((draw < 0.3).astype(np.int32), mask=draw > 0.8)


def to_batches(requests: list[dict[str, object]], *, size: int = 7) -> list[pa.RecordBatch]:
    return [to_batch(requests[start : start + size]) for start in range(0, len(requests), size)]
