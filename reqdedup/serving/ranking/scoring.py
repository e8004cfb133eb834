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
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError

from reqdedup.schema import HISTORY_END, ITEM_ID, REQUEST_ID, TIMELINE_VERSION, USER_ID
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.storage.iceberg.names import check_free_name, make_namespace
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
    for batch in loader:
        logits_BN = ranker.logits(batch).numpy()
        keys = {
            USER_ID: batch.user_id_R[batch.request_of_row_B].numpy(),
            REQUEST_ID: batch.request[REQUEST_ID][batch.request_of_row_B].numpy(),
            ITEM_ID: batch.item_id_B.numpy(),
        }
        logits = {label: logits_BN[:, number] for number, label in enumerate(ranker.labels)}
        yield pa.RecordBatch.from_pydict({**keys, **logits})


def score(ranker: Ranker, source: Source, path: Path) -> Scored:
    """Write `scores` into a Parquet file, which stands there whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    num_rows = 0
    try:
        with pq.ParquetWriter(unfinished, _schema(ranker), compression="zstd") as writer:
            for batch in scores(ranker, source):
                writer.write_batch(batch)
                num_rows += batch.num_rows
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return _scored(ranker, num_rows)


def score_into(ranker: Ranker, source: Source, catalog: Catalog, identifier: str) -> Scored:
    """Write `scores` into a new table of the catalog, in the commit that creates it; they wait for it in memory.

    Raises ValueError for a name without a namespace, or one that is kept, and for a table that is there: what it holds
    is nobody's to replace unseen.
    """
    namespace = check_free_name(identifier)
    taken = f"{identifier}: the name of a new table required, found one that is there; take another name or drop it"
    if catalog.table_exists(identifier):
        raise ValueError(taken)
    rows = pa.Table.from_batches(scores(ranker, source), schema=_schema(ranker))
    make_namespace(catalog, namespace)
    try:
        with catalog.create_table_transaction(identifier, rows.schema) as transaction:
            transaction.append(rows)
    except (TableAlreadyExistsError, CommitFailedException):  # another writer was faster
        raise ValueError(taken) from None
    return _scored(ranker, len(rows))


def _schema(ranker: Ranker) -> pa.Schema:
    names = (USER_ID, REQUEST_ID, ITEM_ID)
    return pa.schema([*((name, pa.int64()) for name in names), *((label, pa.float32()) for label in ranker.labels)])


def _scored(ranker: Ranker, num_rows: int) -> Scored:
    counts = ranker.cache.counts
    return Scored(requests=counts.kept + counts.extended + counts.computed, rows=num_rows, reuse=counts.reuse)
