"""A log in the names and types of another team, and the rows that its conversion must give."""

from __future__ import annotations

import datetime as dt
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.convert import ColumnMapping
from reqdedup.logs.ids import hash_string
from reqdedup.storage import TableSource

MAPPING = ColumnMapping(
    user="member",
    request="session",
    item="shown.id",
    time="at",
    labels=["clicked"],
    rename={"history.item": "history_item_id"},
)


def their_rows(*, num_requests: int = 40, seed: int = 0) -> pa.Table:
    """A log as another team might keep it: string ids, structs, a list of structs, small integers, nulls, a date."""
    rng = np.random.default_rng(seed)
    rows = []
    for request in range(num_requests):
        member = f"mitglied-Ж{request // 3}"
        history = [
            {"item": int(item), "watched": float(np.float32(share)), "kind": int(kind)}
            for item, share, kind in zip(rng.integers(0, 10**9, 12), rng.random(12), rng.integers(0, 4, 12))
        ][: int(rng.integers(0, 13))]
        shared = {
            "member": member,
            "session": f"{request:08x}",
            "at": dt.datetime(2025, 11, 1, 12) + dt.timedelta(minutes=7 * request),
            "day": dt.date(2025, 11, 1 + request % 5),
            "country": None if request % 7 == 0 else f"land-{request % 4}",
            "history": history,
            "taste": [float(np.float32(value)) for value in rng.normal(size=4)],
        }
        for _ in range(1 if request % 6 == 0 else int(rng.integers(2, 12))):
            shown = {"id": int(rng.integers(0, 2**40)), "price": None if rng.random() < 0.2 else float(rng.random())}
            rows.append(
                shared | {"shown": shown, "rank": int(rng.integers(0, 100)), "clicked": bool(rng.random() < 0.2)}
            )
    return pa.Table.from_pylist(rows, THEIR_SCHEMA)


THEIR_SCHEMA = pa.schema(
    [
        ("member", pa.string()),
        ("session", pa.large_string()),
        ("at", pa.timestamp("ms")),
        ("day", pa.date32()),
        ("country", pa.dictionary(pa.int32(), pa.string())),
        ("history", pa.list_(pa.struct([("item", pa.int64()), ("watched", pa.float32()), ("kind", pa.int8())]))),
        ("taste", pa.list_(pa.float32(), 4)),
        ("shown", pa.struct([("id", pa.int64()), ("price", pa.float64())])),
        ("rank", pa.int16()),
        ("clicked", pa.bool_()),
    ]
)


def folder_of(tmp_path, rows: pa.Table, *, shuffle: bool = True, num_files: int = 3):
    order = np.random.default_rng(1).permutation(len(rows)) if shuffle else np.arange(len(rows))
    folder = tmp_path / "theirs"
    folder.mkdir()
    for number, part in enumerate(np.array_split(order, num_files)):
        pq.write_table(rows.take(pa.array(part)), folder / f"part-{number}.parquet", row_group_size=50)
    return folder


def expected(rows: pa.Table) -> list[dict]:
    """The rows as the new table must give them, from a plain loop over the old ones."""
    found = []
    for row in rows.to_pylist():
        number = int.from_bytes(blake2b(row["session"].encode(), digest_size=8).digest(), "little") & (2**63 - 1)
        history = row["history"]
        found.append(
            {
                "user_id": hash_string(row["member"]),
                "request_id": number,
                "item_id": row["shown"]["id"],
                "user_key": row["member"],
                "request_key": row["session"],
                "request_ts": row["at"].replace(tzinfo=dt.UTC),
                "day": row["day"],
                "country": row["country"],
                "history_item_id": np.array([one["item"] for one in history], "<i8").tobytes(),
                "history_watched": np.array([one["watched"] for one in history], "<f4").tobytes(),
                "history_kind": np.array([one["kind"] for one in history], "<i4").tobytes(),
                "taste": np.array(row["taste"], "<f4").tobytes(),
                "shown_price": row["shown"]["price"],
                "rank": row["rank"],
                "clicked": int(row["clicked"]),
            }
        )
    return in_order(found)


def rows_in(table) -> list[tuple]:
    return in_order([row for batch in TableSource(table).batches() for row in batch.to_pylist()])


def in_order(rows: list[dict]) -> list[tuple]:
    return sorted((tuple(sorted(row.items())) for row in rows), key=repr)
