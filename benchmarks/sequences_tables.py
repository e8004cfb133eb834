"""What `benchmarks.sequences` measures of tables: histories of requests, compaction, pointers, a correction."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.interleaved import interleaved, ratio_row
from benchmarks.sequences_lake import BUCKETS, ENGAGED, NUM_REQUESTS, NUMBERS, InMemory, Lake, N, requests_of, sizes
from reqdedup.arrays.windows import gather_windows
from reqdedup.sequences.batch import compact_timeline, publish_timeline
from reqdedup.sequences.corrections import correct_enrichment
from reqdedup.sequences.ends import add_histories, history_ends, windows
from reqdedup.sequences.timeline import Timeline, open_timeline

Row = dict[str, Any]


def histories(lake: Lake, rounds: int) -> Iterator[Row]:
    """Ends and assembly of all requests beside range joins of a tenth of them: both from the same files, and both from
    events that are in memory."""
    requests = requests_of(lake, NUM_REQUESTS)
    timeline = open_timeline(lake.catalog, "lake")
    kept, definition = InMemory(timeline), replace(ENGAGED, columns=NUMBERS)
    user_R = requests.column("user_id").to_numpy()
    at_us_R = requests.column("request_ts").cast("int64").to_numpy()
    files = [file.file_path.removeprefix("file://") for file in timeline.files]
    bare = pl.scan_parquet(files).select("user_id", "timeline_index", "arrival_ts", *NUMBERS)
    events = bare.collect()
    some = pl.from_arrow(requests).gather_every(10)
    assert isinstance(some, pl.DataFrame)

    def ours() -> list[pa.RecordBatch]:
        return list(add_histories(lake.catalog, "lake", "engaged", requests, columns=NUMBERS))

    def ours_in_memory() -> list[np.ndarray]:
        return [
            gather_windows(found.columns[name], found.start_R, found.length_R)
            for _, found in windows(kept, definition, user_R, at_us_R)
            for name in NUMBERS
        ]

    def polars(source: pl.LazyFrame) -> pl.DataFrame:
        joined = some.lazy().join(source, on="user_id").filter(pl.col("arrival_ts") < pl.col("request_ts"))
        ordered = joined.sort("request_id", "timeline_index").group_by("request_id", maintain_order=True).tail(N)
        return ordered.group_by("request_id", maintain_order=True).agg(NUMBERS).collect()

    connection = duckdb.connect(config={"threads": 1})
    connection.register("asked", some.to_arrow())
    connection.register("events", events.to_arrow())
    query = (
        "create or replace table found as select request_id, list(item_id order by i) item_id, "
        "list(category order by i) category from (select request_id, item_id, category, timeline_index i, "
        "row_number() over (partition by request_id order by timeline_index desc) k from asked join {} using "
        "(user_id) where arrival_ts < request_ts) where k <= 500 group by request_id"
    )
    said = {}
    for batch in ours():
        for request, code in zip(
            batch.column("request_id").to_pylist(), batch.column("history_item_id").indices.to_pylist()
        ):
            said[request] = batch.column("history_item_id").dictionary[code].as_py()
    for request, items in polars(events.lazy()).select("request_id", "item_id").rows():
        assert np.frombuffer(said[request], "<i8").tolist() == items, f"request {request} differs"
    for where, own, source, table in (
        ("from files", ours, bare, f"read_parquet({files})"),
        ("in memory", ours_in_memory, events.lazy(), "events"),
    ):
        timings = interleaved(
            {
                "reqdedup": own,
                "Polars": partial(polars, source),
                "DuckDB": partial(connection.execute, query.format(table)),
            },
            rounds=rounds,
            units={"reqdedup": NUM_REQUESTS, "Polars": some.height, "DuckDB": some.height},
        )
        best = min(("Polars", "DuckDB"), key=timings.median)
        row = ratio_row("histories of requests", timings, baseline=best, sizes=sizes(lake), target=50)
        yield {**row, "variant": where}
    ends = interleaved({"ends": lambda: history_ends(lake.catalog, "lake", requests)}, rounds=rounds)
    yield {
        "claim": "history_end of 30,000 requests",
        "variant": "reqdedup",
        "value": ends.median("ends"),
        "unit": "CPU s",
        "target": None,
        "sizes": sizes(lake),
    }
    events_read, pairs = events.height, sum(len(value) // 8 for value in said.values())
    yield {
        "claim": "enrichment look-ups",
        "variant": "one per event",
        "value": pairs / events_read,
        "unit": "x fewer than one per (sequence, event)",
        "target": 10,
        "sizes": sizes(lake),
    }


def compaction(lake: Lake, folder: Path, rounds: int) -> Iterator[Row]:
    """Reading the timeline, as daily files and after compaction, beside one file a bucket of the same rows: its first
    month, which is one file a bucket too, and all months, whose files are put into one order as they are read."""

    def read(timeline: Timeline) -> int:
        return sum(len(timeline.read(bucket, NUMBERS)) for bucket in range(timeline.num_buckets))

    def one(paths: list[Path]) -> int:
        columns = ["user_id", "timeline_index", *NUMBERS]
        return sum(len(pq.read_table(path, columns=columns, use_threads=False)) for path in paths)

    before = open_timeline(lake.catalog, "lake")
    compact_timeline(lake.catalog, "lake")
    after = open_timeline(lake.catalog, "lake")
    first = min(file.partition[1] for file in after.files)
    num_months = len({file.partition[1] for file in after.files})
    for months in ("one month", f"{num_months} months"):
        as_days, compacted = (Timeline(of.table, of.snapshot_id, of.state) for of in (before, after))
        for timeline in (as_days, compacted):
            kept = [file for file in timeline.files if file.partition[1] == first or months != "one month"]
            timeline.files = kept
        paths = [folder / f"{months}-{bucket}.parquet" for bucket in range(after.num_buckets)]
        for bucket, path in enumerate(paths):
            whole = compacted.read(bucket, after.schema.names)
            pq.write_table(whole, path, compression="zstd", compression_level=3)
        timings = interleaved(
            {
                "after compaction": partial(read, compacted),
                "daily files": partial(read, as_days),
                "one file a bucket": partial(one, paths),
            },
            rounds=rounds,
        )
        for name, target in (("after compaction", 1.2), ("daily files", None)):
            found = timings.ratios(name, "one file a bucket")
            yield {
                "claim": "reading the timeline",
                "variant": f"{name}, {months}",
                "value": float(np.median(found)),
                "unit": "x the CPU time of one file a bucket",
                "must_stay_below": target,
                "target": None,
                "spread": [min(found), max(found)],
                "sizes": sizes(lake),
            }


def correction(lake: Lake) -> Iterator[Row]:
    """Other categories of the ten rarest items that have events: bytes written beside those of the files touched."""
    before = open_timeline(lake.catalog, "lake")
    seen = np.concatenate([before.read(bucket, ["item_id"]).column("item_id").to_numpy() for bucket in range(BUCKETS)])
    items, counts = np.unique(seen, return_counts=True)
    chosen = items[np.argsort(counts, kind="stable")[:10]].tolist()
    changed = lake.items.with_columns(
        pl.when(pl.col("item_id").is_in(chosen)).then(pl.col("category") + 1).otherwise("category").alias("category")
    )
    table = lake.catalog.load_table("lake.items")
    table.overwrite(changed.to_arrow().cast(table.scan(limit=1).to_arrow().schema))
    started = time.process_time()
    report = correct_enrichment(lake.catalog, "lake", "item")
    seconds = time.process_time() - started
    publish_timeline(lake.catalog, "lake")
    yield {
        "claim": "correction of one enrichment",
        "variant": "ten rare items",
        "events": report.num_events,
        "value": report.num_bytes / report.touched_bytes,
        "unit": "x the bytes of the files touched",
        "must_stay_below": 1.2,
        "target": None,
        "bytes": {"written": report.num_bytes, "timeline": sum(file.file_size_in_bytes for file in before.files)},
        "files": {"written": report.num_files, "kept": report.num_kept_files},
        "seconds": {"reqdedup": seconds},
        "sizes": sizes(lake),
    }


def pointers(lake: Lake, folder: Path) -> Iterator[Row]:
    """A further training table: requests as pointers, beside item ids and embeddings as blobs, a tenth of the users."""
    requests = requests_of(lake, NUM_REQUESTS).slice(0, NUM_REQUESTS // 10)
    pointed = history_ends(lake.catalog, "lake", requests)
    pq.write_table(
        pointed,
        folder / "pointers.parquet",
        compression="zstd",
        compression_level=3,
        use_dictionary=["user_id", "timeline_version"],
        column_encoding=dict.fromkeys(("request_ts", "request_id", "history_end"), "DELTA_BINARY_PACKED"),
    )
    timeline = open_timeline(lake.catalog, "lake")
    user_R = requests.column("user_id").to_numpy()
    at_R = requests.column("request_ts").cast("int64").to_numpy()
    blobs: dict[str, list[bytes]] = {"item_id": [], "embedding": []}
    wide = replace(ENGAGED, columns=list(blobs))
    for _, found in windows(timeline, wide, user_R, at_R):
        for start, length in zip(found.start_R.tolist(), found.length_R.tolist()):
            for name, values in blobs.items():
                values.append(found.columns[name][start : start + length].tobytes())
    pq.write_table(
        pa.table({name: pa.array(values, pa.large_binary()) for name, values in blobs.items()}),
        folder / "blobs.parquet",
        compression="zstd",
        compression_level=3,
        dictionary_pagesize_limit=2**30,
        row_group_size=1_024,
    )
    sizes_of = {name: (folder / f"{name}.parquet").stat().st_size for name in ("pointers", "blobs")}
    users = pa.array(np.unique(user_R))
    of_users = [timeline.read(bucket, timeline.schema.names) for bucket in range(timeline.num_buckets)]
    rows = pa.concat_tables([rows.filter(pc.is_in(rows.column("user_id"), value_set=users)) for rows in of_users])
    pq.write_table(rows, folder / "timeline.parquet", compression="zstd", compression_level=3)
    timeline_bytes = (folder / "timeline.parquet").stat().st_size
    yield {
        "claim": "the first training table as pointers",
        "variant": "with the events of its users",
        "value": sizes_of["blobs"] / (sizes_of["pointers"] + timeline_bytes),
        "unit": "x fewer bytes than item ids and embeddings as blobs",
        "target": None,
        "sizes": sizes(lake),
    }
    yield {
        "claim": "a further training table as pointers",
        "variant": "reqdedup",
        "value": sizes_of["blobs"] / sizes_of["pointers"],
        "unit": "x fewer bytes than item ids and embeddings as blobs",
        "target": 100,
        "bytes": {**sizes_of, "timeline": timeline_bytes},
        "sizes": sizes(lake),
    }
