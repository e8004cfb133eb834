"""Tables as a team may have them: other names and types than reqdedup's, written by pyarrow or pyiceberg."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

KEYS = {"request_key": "session", "user_key": "member"}


def impressions(
    *, num_users: int = 60, fan_out: int = 24, history: int = 400, seed: int = 0, num_broken: int = 0
) -> pa.Table:
    """Rows in (member, session) order; `num_broken` requests have one row with another country.

    member: string; session: int64; ts: request time; country, embedding, history.{item, action}: of the request;
    item, price, click: of the row.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {name: [] for name in ("member", "session", "ts", "country", "embedding", "history")}
    rows: dict[str, list] = {name: [] for name in ("item", "price", "click")}
    session = 0
    for user in range(num_users):
        events = rng.integers(0, 2**33, history), rng.integers(0, 4, history)
        for _ in range(int(rng.integers(1, 4))):
            session += 1
            size = 1 if session % 11 == 0 else int(rng.integers(2, 2 * fan_out))
            start, end = 0, int(history * (0.5 + 0.5 * rng.random()))
            if user % 17 == 5:
                end = 0
            value = {
                "member": f"member-{user:05d}",
                "session": session * 7919,
                "ts": 1_760_000_000_000 + session,
                "country": ("de", "fr", "jp", None)[user % 4],
                "embedding": rng.normal(size=16).astype(np.float32),
                "history": [
                    {"item": int(item), "action": int(action)}
                    for item, action in zip(events[0][start:end], events[1][start:end])
                ],
            }
            for name, column in columns.items():
                column += [value[name]] * size
            if session <= num_broken and size > 1:
                columns["country"][-1] = "xx"
            rows["item"] += rng.integers(0, 50_000, size).tolist()
            rows["price"] += rng.random(size).tolist()
            rows["click"] += (rng.random(size) < 0.03).tolist()
    return pa.table({**columns, **rows}, schema=SCHEMA)


SCHEMA = pa.schema(
    [
        ("member", pa.string()),
        ("session", pa.int64()),
        ("ts", pa.timestamp("ms")),
        ("country", pa.string()),
        ("embedding", pa.list_(pa.float32())),
        ("history", pa.list_(pa.struct([("item", pa.int64()), ("action", pa.int32())]))),
        ("item", pa.int64()),
        ("price", pa.float64()),
        ("click", pa.bool_()),
    ]
)


def shuffled(table: pa.Table, seed: int = 1) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(len(table))))


def write_folder(folder: Path, table: pa.Table, *, files: int = 2, **options: object) -> Path:
    """The rows in order, dealt to files as they come."""
    folder.mkdir(parents=True)
    bounds = np.linspace(0, len(table), files + 1).astype(int)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, end - start), folder / f"part-{number:03d}.parquet", **options)
    return folder


def local_catalog(root: Path) -> Catalog:
    root.mkdir(parents=True, exist_ok=True)
    return SqlCatalog("audit", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}/tables")


def append_all(catalog: Catalog, identifier: str, table: pa.Table, **properties: str) -> Table:
    """A plain Iceberg table as pyiceberg's append makes it."""
    catalog.create_namespace_if_not_exists(identifier.partition(".")[0])
    created = catalog.create_table(identifier, table.schema, properties=properties)
    created.append(table)
    return created


def column_bytes(paths: list[Path] | list[str]) -> int:
    """Compressed bytes of all column chunks, counted without the audit."""
    total = 0
    for path in paths:
        footer = pq.read_metadata(str(path).removeprefix("file://"))
        for group in range(footer.num_row_groups):
            total += sum(footer.row_group(group).column(c).total_compressed_size for c in range(footer.num_columns))
    return total
