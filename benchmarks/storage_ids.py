"""What dense ids of items save against hashed ones, and what they cost: the log of `benchmarks.news_log`, with texts.

    python -m benchmarks.storage --only ids

Bytes of the history column and of the whole table, one bucket, with ids of the table `items` and with int64 hashes; the
vocabulary's own bytes by key; ids by second of CPU, of keys that are new and of keys that the table has, beside
hashing. Gate: both tables have the same rows, told apart by their keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyiceberg.catalog import Catalog

from benchmarks.news_log import NewsLog
from benchmarks.storage_news import HISTORY, TEXTS, WHOLE, bytes_of
from benchmarks.tables import local_catalog
from reqdedup.convert import convert_table
from reqdedup.logs.ids import hash_string, hash_strings
from reqdedup.storage import TableSource
from reqdedup.storage.iceberg.paths import local_path
from reqdedup.storage.iceberg.vocabulary import Vocabulary, items_identifier

ROWS, KEYS = 190_000, 1_000_000
DENSE, HASHED = "dense", "hashed"


def run(folder: Path, rows: int, keys: int) -> Iterator[dict[str, Any]]:
    yield from bytes_rows(folder, rows)
    yield from assigning_rows(local_catalog(folder / "assign"), keys)


def bytes_rows(folder: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Result rows: how many times fewer bytes dense ids take."""
    folder.mkdir(parents=True, exist_ok=True)
    _, texts = NewsLog(rows).write(folder)
    catalog = local_catalog(folder)
    found = {}
    for name in (DENSE, HASHED):
        table = f"{name}.log"
        convert_table(texts, catalog, table, replace(TEXTS, hash_items=name == HASHED), num_buckets=1)
        found[name] = bytes_of([local_path(path) for path in TableSource(catalog.load_table(table)).paths])
    check_same_items(catalog)
    words = Vocabulary(catalog, items_identifier(f"{DENSE}.log"))
    vocabulary = bytes_of([local_path(path) for path in words.files()])[WHOLE]
    num_keys = words.table().scan().count()
    sizes = {"rows": rows, "keys": num_keys, "columns": found, "vocabulary_bytes": vocabulary}
    for column in (HISTORY, WHOLE):
        for variant, more in ((DENSE, 0), ("dense, vocabulary counted", vocabulary)):
            yield {
                "claim": f"text ids of items, {rows:,} rows: {column} against hashed ids",
                "variant": variant,
                "value": found[HASHED][column] / (found[DENSE][column] + more),
                "unit": "x fewer bytes",
                "target": None,
                "bytes": found[DENSE][column] + more,
                "sizes": sizes,
            }
    yield {
        "claim": f"text ids of items, {rows:,} rows: vocabulary",
        "variant": DENSE,
        "value": vocabulary / num_keys,
        "unit": "bytes a key",
        "target": None,
        "sizes": sizes,
    }


def check_same_items(catalog: Catalog) -> None:
    """Raise ValueError unless both tables show the same items, the dense ones by the hash of their key."""
    dense, hashed = (TableSource(catalog.load_table(f"{name}.log")) for name in (DENSE, HASHED))
    ids = [
        np.concatenate([batch.column("item_id").to_numpy() for batch in source.batches(["item_id"])])
        for source in (dense, hashed)
    ]
    numbers, of_row = np.unique(ids[0], return_inverse=True)
    keys = dense.item_keys(numbers)
    by_key = np.array([hash_string(key) for key in (keys if keys is not None else [])], np.int64)[of_row]
    if not np.array_equal(np.sort(by_key), np.sort(ids[1])):
        raise ValueError("the same items in both tables required, found others; nothing is reported")


def assigning_rows(catalog: Catalog, num_keys: int) -> Iterator[dict[str, Any]]:
    """Result rows: ids by second of CPU."""
    catalog.create_namespace_if_not_exists("lake")
    words = Vocabulary(catalog, "lake.items")
    keys = [f"N{number}" for number in np.random.default_rng(0).permutation(4 * num_keys)[:num_keys].tolist()]
    arrow, series = pa.array(keys), pl.Series(keys)
    for variant, work in (
        ("dense, new keys", lambda: words.assign(arrow)),
        ("dense, known keys", lambda: words.assign(arrow)),
        (HASHED, lambda: hash_strings(series).to_numpy()),
    ):
        ids, seconds = timed(work)
        if len(np.unique(ids)) != num_keys:
            raise ValueError(f"{variant}: an id for each key required, found {len(np.unique(ids))} of {num_keys}")
        yield {
            "claim": "text ids of items: ids by second of CPU",
            "variant": variant,
            "value": num_keys / seconds,
            "unit": "ids a second",
            "target": None,
            "sizes": {"keys": num_keys},
        }


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What it gives, and the CPU seconds of this process that it takes."""
    started = time.process_time()
    found = work()
    return found, max(time.process_time() - started, 1e-9)
