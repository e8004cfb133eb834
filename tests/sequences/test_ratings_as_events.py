"""A log of ratings, delivered as events in the order of time, gives the histories that ingest gives: none is late."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog

from reqdedup.logs import read_log
from reqdedup.sequences.batch import advance
from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events
from reqdedup.sequences.training_table import with_histories

LOG = EventLog(types=("rated",), columns={"rating": "float64"})
RATED = SequenceDefinition(
    name="rated", owner="tests", events=[EventType("rated")], columns=["item_id", "event_ts"], last_n=10_000
)


def ratings_like_movielens(folder: Path) -> Path:
    """Sittings in which half of the ratings share a second with the one before; lines in no order of time."""
    rng, rows = np.random.default_rng(3), []
    for user in range(1, 41):
        at = 880_000_000 + int(rng.integers(0, 10**6))
        for item in rng.permutation(200)[: int(rng.integers(1, 60))]:
            at += int(rng.choice([0, 0, 1, 30, 7_200]))
            rows.append(f"{user}\t{item + 1}\t{rng.integers(1, 6)}\t{at}\n")
    path = folder / "u.data"
    path.write_text("".join(rows[place] for place in rng.permutation(len(rows))))
    return path


def histories(
    schema: list[str], batches: Iterable[pa.RecordBatch]
) -> dict[tuple[int, int, int], tuple[int, bytes, bytes]]:
    found = {}
    for batch in batches:
        assert set(schema) >= {"history_item_id", "history_ts", "history_end"}
        for row in batch.to_pylist():
            key = (row["user_id"], row["request_id"], row["item_id"])
            found[key] = (row["history_end"], row["history_item_id"], row["history_ts"])
    return found


def check_same_histories(path: Path, folder: Path) -> int:
    """How many rows were compared; the same by hand: `check_same_histories(Path("ml-100k/u.data"), Path("/tmp/x"))`."""
    log = read_log(path, preset="movielens", max_history=16_384)
    rated = pl.read_csv(path, separator="\t", has_header=False, new_columns=["user_id", "item_id", "rating", "at"])
    rated = rated.with_row_index("event_id").sort("at", maintain_order=True)
    time = (pl.col("at") * 1_000_000).cast(pl.Datetime("us", "UTC"))
    events = rated.select(
        pl.col("event_id").cast(pl.Int64),
        "user_id",
        "item_id",
        pl.lit("rated").alias("event_type"),
        time.alias("event_ts"),
        time.alias("arrival_ts"),
        pl.col("rating").cast(pl.Float64),
    )
    catalog = load_catalog("t", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")
    append_events(catalog, "lake", LOG, [events.to_arrow()], source="ratings")
    advance(catalog, "lake", [RATED], num_buckets=2)
    schema, batches = with_histories(catalog, "lake", "rated", log.schema, log)
    found, required = histories(schema.names, batches), histories(log.schema.names, log)
    assert found == required
    return len(found)


@pytest.mark.slow
def test_ratings_as_events_give_the_histories_that_ingest_gives(tmp_path: Path):
    assert check_same_histories(ratings_like_movielens(tmp_path), tmp_path) > 700
