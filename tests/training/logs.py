"""Small random logs in the deduplicated form, with their requests as plain Python for reference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.dedup.encoding import deduplicated_schema
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage.read.reader import FileSource, RowGroup
from reqdedup.training.loader import RequestLoader
from reqdedup.training.plan import Wanted

SCHEMA = EngagementSchema((
    Column(name="user_id", dtype="int64", level=Level.KEY),
    Column(name="request_id", dtype="int64", level=Level.KEY),
    Column(name="item_id", dtype="int64", level=Level.KEY),
    Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
    Column(name="history_end", dtype="int64", level=Level.REQUEST),
    Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
    Column(name="history_action", dtype="int32", level=Level.REQUEST, kind=Kind.SEQUENCE),
    Column(name="user_embedding", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=3),
    Column(name="device", dtype="int32", level=Level.REQUEST, nullable=True),
    Column(name="user_key", dtype="string", level=Level.REQUEST),
    Column(name="is_new", dtype="bool", level=Level.ITEM, nullable=True),
    Column(name="position", dtype="int32", level=Level.ITEM),
    Column(name="price", dtype="float64", level=Level.ITEM, nullable=True),
    Column(name="click", dtype="int32", level=Level.LABEL, nullable=True),
))  # fmt: skip


@dataclass
class RandomLog:
    """groups: one deduplicated batch per row group.  requests: (user, request) -> its values and rows as plain Python."""

    groups: list[pa.RecordBatch]
    requests: dict[tuple[int, int], dict[str, Any]]
    schema: EngagementSchema = SCHEMA
    reads: list[int] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for group in self.groups)

    def row_groups(self) -> list[RowGroup]:
        return [RowGroup("memory", index, group.num_rows) for index, group in enumerate(self.groups)]

    def read_row_group(self, group: RowGroup, columns=None) -> pa.RecordBatch:
        self.reads.append(group.index)
        return self.groups[group.index].select(list(columns))

    def write(self, path) -> FileSource:
        schema = deduplicated_schema(self.schema)
        blobs = [column.name for column in self.schema.blobs]
        with pq.ParquetWriter(path, schema, use_dictionary=blobs, store_schema=False) as writer:
            for group in self.groups:
                writer.write_batch(group)
        return FileSource([str(path)], self.schema)

    def cut_batches(self, rows: int) -> BatchesOnly:
        return BatchesOnly(self, rows)


@dataclass
class BatchesOnly:
    """The log as a source without row groups, whose batches cut requests anywhere."""

    log: RandomLog
    rows: int

    @property
    def schema(self) -> EngagementSchema:
        return self.log.schema

    def batches(self, columns=None, users=None):
        for group in self.log.groups:
            for start in range(0, group.num_rows, self.rows):
                yield group.slice(start, self.rows).select(list(columns))


def in_days(log: RandomLog) -> RandomLog:
    """The same log with a day for each row group, as a table that grows every day."""
    day_us, groups = 86_400_000_000, []
    for number, group in enumerate(log.groups):
        at = group.schema.get_field_index("request_ts")
        times = pa.array(np.arange(group.num_rows) + number * day_us).cast(group.schema.field(at).type)
        groups.append(group.set_column(at, group.schema.field(at), times))
    return RandomLog(groups, {}, log.schema)


def number_wanted(source: Any, wanted: Wanted, world_size: int = 1) -> dict[int, int]:
    """What a training counts before its first step, by all ranks."""
    found: Counter[int] = Counter()
    for rank in range(world_size):
        loader = RequestLoader(
            source, requests_per_batch=100, shuffle="none", columns=["click"], rank=rank, world_size=world_size,
            on_block=lambda number, block: found.update({number: wanted.number_of(block)}),
        )  # fmt: skip
        for _ in loader:
            pass
    return dict(found)


def random_log(num_groups=5, requests_per_group=13, largest_fan_out=6, largest_history=9, seed=0) -> RandomLog:
    """Neighbouring requests share sequences now and then, and are still two requests."""
    rng = np.random.default_rng(seed)
    groups, requests, item = [], {}, 0
    for g in range(num_groups):
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        history: tuple[list[int], list[int]] = ([], [])
        for r in range(requests_per_group):
            key = (g * 100 + r // 3, 1000 + g * 100 + r)
            if r == 0 or rng.random() < 0.7:
                length = int(rng.integers(0, largest_history + 1))
                history = (rng.integers(0, 2**40, length).tolist(), rng.integers(0, 5, length).tolist())
            request = {
                "request_ts": int(rng.integers(0, 2**50)),
                "history_end": len(history[0]) + int(rng.integers(0, 4)),
                "history_item_id": history[0],
                "history_action": history[1],
                "user_embedding": rng.standard_normal(3).astype(np.float32).tolist(),
                "device": None if rng.random() < 0.2 else int(rng.integers(0, 3)),
                "user_key": f"user-{key[0]}",
            }
            rows = []
            for _ in range(int(rng.integers(1, largest_fan_out + 1))):
                item += 1
                row = {
                    "item_id": item,
                    "is_new": None if rng.random() < 0.2 else bool(rng.integers(0, 2)),
                    "position": len(rows),
                    "price": None if rng.random() < 0.2 else float(rng.random()),
                    "click": None if rng.random() < 0.2 else int(rng.integers(0, 2)),
                }
                rows.append(row)
                values = {"user_id": key[0], "request_id": key[1], **request, **row}
                for name, value in values.items():
                    columns[name].append(value)
            requests[key] = {**request, "rows": rows}
        groups.append(_batch(columns))
    return RandomLog(groups, requests)


def _batch(columns: dict[str, list[Any]]) -> pa.RecordBatch:
    arrays = []
    for column, arrow in zip(SCHEMA.columns, deduplicated_schema(SCHEMA)):
        values = columns[column.name]
        if column.is_blob:
            blobs = [np.array(value, column.dtype).tobytes() for value in values]
            arrays.append(pa.array(blobs, pa.binary()).dictionary_encode())
        else:
            arrays.append(pa.array(values, arrow.type))
    return pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(SCHEMA))


def with_signal(log: RandomLog, num_items: int = 12) -> RandomLog:
    """The same log with few items, half of which are the ones people click and save into their histories."""
    groups = []
    for group in log.groups:
        item_id = group.column("item_id").to_numpy() % num_items
        user_parity = group.column("user_id").to_numpy() % 2
        click = pa.array((item_id % 2 == user_parity).astype(np.int32))
        blobs = group.column("history_item_id")
        values = [(np.frombuffer(blob.as_py(), np.int64) % num_items) for blob in blobs.dictionary]
        parity = {int(code): int(user) for code, user in zip(blobs.indices.to_numpy(), user_parity)}
        liked = [(value // 2 * 2 + parity.get(code, 0)).tobytes() for code, value in enumerate(values)]
        history = pa.DictionaryArray.from_arrays(blobs.indices, pa.array(liked, pa.binary()))
        for name, column in (("item_id", pa.array(item_id)), ("click", click), ("history_item_id", history)):
            at = group.schema.get_field_index(name)
            group = group.set_column(at, group.schema.field(at), column)
        groups.append(group)
    return RandomLog(groups, {}, log.schema)
