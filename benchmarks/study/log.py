"""The logs of the study as tables that the library reads, and what is counted of their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from reqdedup.logs import SyntheticLogConfig, read_log, synthesize, synthetic_schema
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, open_catalog, write

HISTORY = 16


@dataclass(frozen=True, kw_only=True)
class StudyLog:
    """A table and its requests.

    rows_R, clicks_R: all, and clicked, rows of each request.  false_negatives: see the function.
    """

    source: TableSource
    rows_R: np.ndarray
    clicks_R: np.ndarray
    false_negatives: float

    def rows_per_piece(self, task: str, chunk_rows: int | None) -> float:
        """Mean rows of what is shuffled; retrieval learns from clicks alone."""
        rows_R = self.rows_R if task == "ranking" else self.clicks_R[self.clicks_R > 0]
        pieces_R = -(-rows_R // (chunk_rows or rows_R.max()))
        return float(rows_R.sum() / pieces_R.sum())


def synthetic_log(folder: Path, *, seed: int, num_users: int, num_items: int) -> StudyLog:
    """The project's generator as it is; only sizes are set, before any training and for reasons that are none of the
    arms': popularity_exponent 0.6 instead of 0.9 leaves few in-batch negatives of an IID batch that the user clicked.
    """
    config = SyntheticLogConfig(
        seed=seed,
        num_users=num_users,
        num_items=num_items,
        mean_requests_per_user=3,
        mean_fan_out=64,
        history_scale=1 / 200,
        max_history=HISTORY,
        popularity_exponent=0.6,
    )
    return counted(table_of(folder, synthetic_schema(config), synthesize(config)))


def movielens_log(folder: Path, path: Path) -> StudyLog:
    """MovieLens 100K: a request is a sitting, a click a rating of 4 or more."""
    log = read_log(path, preset="movielens", max_history=HISTORY)
    return counted(table_of(folder, log.schema, iter(log)))


def table_of(folder: Path, schema: EngagementSchema, batches: Iterable[pa.RecordBatch]) -> TableSource:
    """The table that training reads, in a catalog of its own inside the folder."""
    catalog = open_catalog(
        properties={"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}"}
    )
    table = create_table(catalog, "study.log", schema, Layout.BY_REQUEST, num_buckets=2)
    write(table, batches)
    return TableSource(table)


def counted(source: TableSource) -> StudyLog:
    """The table with its counts."""
    user_B, request_B, item_B, click_B = columns_of(source, "user_id", "request_id", "item_id", "click")
    first_R = np.flatnonzero((np.diff(user_B, prepend=-1) != 0) | (np.diff(request_B, prepend=-1) != 0))
    is_click_B = click_B > 0
    return StudyLog(
        source=source,
        rows_R=np.diff(np.append(first_R, len(user_B))),
        clicks_R=np.add.reduceat(is_click_B.astype(np.int64), first_R),
        false_negatives=false_negatives(user_B[is_click_B], item_B[is_click_B]),
    )


def columns_of(source: TableSource, *names: str) -> list[np.ndarray]:
    """Columns of all rows, in the order of the table."""
    batches = list(source.batches(names))
    return [np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in batches]) for name in names]


def false_negatives(user_id_B: np.ndarray, item_id_B: np.ndarray) -> float:
    """Share of all pairs of a click and another item's click whose item the first click's user clicked too: what an IID
    batch has of false negatives. user_id_B, item_id_B: of the clicks."""
    items, item_B, count_V = np.unique(item_id_B, return_inverse=True, return_counts=True)
    _, user_B, clicks_U = np.unique(user_id_B, return_inverse=True, return_counts=True)
    pairs = np.unique(user_B * len(items) + item_B)
    of_same_item = float(np.square(count_V, dtype=np.float64).sum())
    reached = float((clicks_U[pairs // len(items)].astype(np.float64) * count_V[pairs % len(items)]).sum())
    return (reached - of_same_item) / (len(item_id_B) ** 2 - of_same_item)
