"""Batch scoring: the logits of every row of a table, each request's history read once, the bits those of a server.

The requests of a user lie together in the table, so a later one's context is extended from an earlier one's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.schema import HISTORY_END, ITEM_ID, REQUEST_ID, TIMELINE_VERSION, USER_ID
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.training import RequestLoader
from reqdedup.training.plan import Source

REQUESTS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Scored:
    """requests, rows: that were scored.  reuse: share of the requests whose context was kept or extended."""

    requests: int
    rows: int
    reuse: float


def scores(ranker: Ranker, source: Source) -> Iterator[pa.RecordBatch]:
    """user_id, request_id, item_id and a float32 logit for each label, of every row, in the table's order.

    Raises ValueError if the table lacks a column that the model reads.
    """
    of_window = [name for name in (HISTORY_END, TIMELINE_VERSION) if name in source.schema]
    columns = dict.fromkeys([*(column.name for column in ranker.transforms.columns), *of_window])
    loader = RequestLoader(
        source,
        requests_per_batch=REQUESTS_PER_BATCH,
        shuffle="none",
        columns=tuple(columns),
        cut=ranker.transforms.cut,
    )
    labels = ranker.model.config.labels
    for batch in loader:
        logits_BN = ranker.logits(batch).numpy()
        keys = {
            USER_ID: batch.user_id_R[batch.request_of_row_B].numpy(),
            REQUEST_ID: batch.request[REQUEST_ID][batch.request_of_row_B].numpy(),
            ITEM_ID: batch.item_id_B.numpy(),
        }
        logits = {label: logits_BN[:, number] for number, label in enumerate(labels)}
        yield pa.RecordBatch.from_pydict({**keys, **logits})


def score(ranker: Ranker, source: Source, path: Path) -> Scored:
    """Write `scores` into a Parquet file, which stands there whole or not at all."""
    names = (USER_ID, REQUEST_ID, ITEM_ID)
    fields = [*((name, pa.int64()) for name in names), *((x, pa.float32()) for x in ranker.model.config.labels)]
    unfinished = path.with_name(f".{path.name}.unfinished")
    num_rows = 0
    try:
        with pq.ParquetWriter(unfinished, pa.schema(fields), compression="zstd") as writer:
            for batch in scores(ranker, source):
                writer.write_batch(batch)
                num_rows += batch.num_rows
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    counts = ranker.cache.counts
    return Scored(requests=counts.kept + counts.extended + counts.computed, rows=num_rows, reuse=counts.reuse)
