"""User sequences on Iceberg tables: a day appended to the timeline beside sequences made anew, histories of requests
beside range joins, a fetch, reading after compaction, further tables as pointers, a correction.

    python -m benchmarks.sequences [--only daily ...] [--rounds 5] [--users 4000 --days 45]

First, at requests of the last day, plain loops, the timeline and the store must agree in all columns. Polars and DuckDB
compute on one thread, CPU time of the process, interleaved; ours includes reading Iceberg's metadata and the commit,
the others write plain Parquet. Replaces `benchmarks/results/sequences.jsonl`.
"""

from __future__ import annotations

import argparse
import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["POLARS_MAX_THREADS"] = "1"

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.interleaved import interleaved, line, ratio_row
from benchmarks.record import write_results
from benchmarks.sequences_lake import (
    ENGAGED,
    LOG,
    NUM_REQUESTS,
    Lake,
    N,
    memory,
    rebuilt,
    requests_of,
    sequences,
    sizes,
)
from benchmarks.sequences_tables import compaction, correction, histories, pointers
from reqdedup.logs.synthetic_events import SyntheticEventsConfig
from reqdedup.sequences import naive
from reqdedup.sequences.batch import advance
from reqdedup.sequences.definition import SequenceDefinition
from reqdedup.sequences.online import OnlineStore, open_online
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage.iceberg.files import derived_file

Row = dict[str, Any]


def daily(lake: Lake, folder: Path, measured: int, *, size: str = "") -> Iterator[Row]:
    """One day after the other: ours appends, the others write every sequence anew. size: what of the claim differs."""
    ratios: dict[str, list[float]] = {"raw cpu": [], "raw bytes": [], "enriched cpu": [], "enriched bytes": []}
    seconds: dict[str, list[float]] = {"ours": [], "raw": [], "enriched": []}
    path = folder / "rebuilt.parquet"
    for number in range(len(lake.days) - measured, len(lake.days)):
        lake.deliver(number, lake.days[number])
        started = time.process_time()
        report = advance(lake.catalog, "lake", [ENGAGED])
        ours = time.process_time() - started
        started = time.process_time()
        whole = rebuilt(lake, path)
        raw, raw_bytes = time.process_time() - started, path.stat().st_size
        timeline = open_timeline(lake.catalog, "lake")
        files = [file.file_path.removeprefix("file://") for file in timeline.files]
        started = time.process_time()
        again = sequences(pl.scan_parquet(files), path, "timeline_index")
        enriched, enriched_bytes = time.process_time() - started, path.stat().st_size
        assert again.select("user_id", "event_id").equals(whole.select("user_id", "event_id"))
        for name, value in (("ours", ours), ("raw", raw), ("enriched", enriched)):
            seconds[name].append(value)
        ratios["raw cpu"].append(raw / ours)
        ratios["raw bytes"].append(raw_bytes / report.num_bytes)
        ratios["enriched cpu"].append(enriched / ours)
        ratios["enriched bytes"].append(enriched_bytes / report.num_bytes)
    for name, found in ratios.items():
        unit = "x less CPU time" if name.endswith("cpu") else "x fewer bytes written"
        against = "all sequences from raw events" if name.startswith("raw") else "all sequences from enriched events"
        yield {
            "claim": f"daily update{size} against {against}",
            "variant": "CPU" if name.endswith("cpu") else "bytes",
            "value": float(np.median(found)),
            "unit": unit,
            "target": 20 if name.endswith("cpu") else 25,
            "spread": [min(found), max(found)],
            "runs": measured,
            "seconds": {key: float(np.median(value)) for key, value in seconds.items()},
            "sizes": sizes(lake),
        }


def daily_ten(folder: Path, config: SyntheticEventsConfig) -> Iterator[Row]:
    """The same at ten times the users, where what a commit costs whatever it brings weighs little."""
    place = folder / "ten"
    place.mkdir()
    lake = Lake(place, replace(config, num_users=10 * config.num_users), 3)
    yield from daily(lake, place, 3, size=" at ten times the events")


def standing(folder: Path, config: SyntheticEventsConfig) -> Iterator[Row]:
    """A day appended to a timeline that was made day by day and never compacted, with the file of where users stand
    and, every other day, without it."""
    place, seconds = folder / "standing", dict[str, list[float]](reqdedup=[], events=[])
    place.mkdir()
    lake = Lake(place, config, 8, every_day=True)
    for number in range(len(lake.days) - 8, len(lake.days)):
        lake.deliver(number, lake.days[number])
        name = "events" if number % 2 else "reqdedup"
        if name == "events":
            snapshot = lake.catalog.load_table("lake.user_events").current_snapshot()
            assert snapshot is not None
            Path(str(derived_file(snapshot)).removeprefix("file://")).unlink()
        started = time.process_time()
        advance(lake.catalog, "lake", [ENGAGED])
        seconds[name].append(time.process_time() - started)
    ratios = [without / with_file for with_file, without in zip(seconds["reqdedup"], seconds["events"])]
    yield {
        "claim": "daily update of a timeline of daily files",
        "variant": "a file of where users stand",
        "value": float(np.median(ratios)),
        "unit": "x less CPU time than with the timeline's files read",
        "target": None,
        "spread": [min(ratios), max(ratios)],
        "runs": len(ratios),
        "seconds": {name: float(np.median(found)) for name, found in seconds.items()},
        "sizes": sizes(lake),
    }


def fetches(lake: Lake, folder: Path) -> Iterator[Row]:
    """Fetches of 500 events x 4 columns in this process, of users weighted by their events."""
    store = open_online(folder / "online", lake.catalog, "lake")
    rng = np.random.default_rng(3)
    users = pa.concat_tables(lake.days).column("user_id").to_numpy()
    some = [int(user) for user in users[rng.integers(0, len(users), 20_000)]]
    four = ["item_id", "category", "event_type", "event_ts"]
    for user in some[:2_000]:
        store.fetch(user, "engaged", four)
    wall = np.empty(len(some))
    for number, user in enumerate(some):
        started = time.perf_counter()
        for values in store.fetch(user, "engaged", four).values():
            values.copy()  # a slice of a memory-mapped column is read only now
        wall[number] = time.perf_counter() - started
    yield {
        "claim": "fetch 500 events x 4 columns",
        "variant": "in process",
        "value": float(np.quantile(wall, 0.99) * 1e6),
        "unit": "us p99",
        "target": None,
        "median_us": float(np.median(wall) * 1e6),
        "must_stay_below": 200,
        "sizes": sizes(lake),
    }
    yield from narrow_reads(lake, store, some)
    store.close()


def narrow_reads(lake: Lake, store: OnlineStore, users: list[int]) -> Iterator[Row]:
    """3 of 9 columns of a fetch, beside whole events of a user in memory, without a look-up of the user or a search:
    pickled rows, as the goal has it, and packed side by side; and beside the same fetch of all columns."""
    three = ["item_id", "event_type", "event_ts"]
    user = max(set(users[:2000]), key=lambda one: len(store.fetch(one, "engaged", ["item_id"])["item_id"]))
    every = store.fetch(user, "engaged")
    record = np.dtype([(name, values.dtype) for name, values in every.items()])
    packed = np.empty(len(every["item_id"]), record)
    for name, values in every.items():
        packed[name] = values
    blob, pickled = packed.tobytes(), pickle.dumps(packed.tolist())

    def ours() -> dict[str, np.ndarray]:
        return {name: values.copy() for name, values in store.fetch(user, "engaged", three).items()}

    def whole() -> dict[str, np.ndarray]:
        found = np.frombuffer(blob, record)
        return {name: found[name].copy() for name in record.names or ()}

    asked = sum(values.nbytes for values in ours().values())

    def all_nine() -> dict[str, np.ndarray]:
        return {name: values.copy() for name, values in store.fetch(user, "engaged").items()}

    variants: dict[str, Any] = {"reqdedup": ours, "pickled rows": lambda: pickle.loads(pickled)}
    variants |= {"packed events": whole, "all nine of the same fetch": all_nine}
    timings = interleaved(variants, rounds=9, repeats=dict.fromkeys(variants, 2_000))
    yield {
        "claim": "3 of 9 columns of a sequence",
        "variant": "bytes",
        "value": len(blob) / asked,
        "unit": "x fewer bytes than whole events",
        "target": 5,
        "sizes": sizes(lake),
    }
    for baseline, target in (("pickled rows", 3), ("packed events", None), ("all nine of the same fetch", None)):
        row = ratio_row("3 of 9 columns of a sequence", timings, baseline=baseline, target=target, sizes=sizes(lake))
        yield {**row, "variant": f"against {baseline}"}


def equal(lake: Lake, folder: Path) -> Iterator[Row]:
    """Plain loops, the timeline and the store at requests of the last day; raises AssertionError if one differs."""
    chosen = set(np.random.default_rng(5).permutation(lake.config.num_users)[:300].tolist())
    events = [
        event | {name: _micros(event[name]) for name in ("event_ts", "arrival_ts")}
        for day in lake.days
        for event in day.filter(pa.compute.is_in(day.column("user_id"), value_set=pa.array(sorted(chosen)))).to_pylist()
    ]
    rows = lake.items.filter(pl.col("item_id").is_in(list({event["item_id"] for event in events}))).to_dicts()
    by_item = {row["item_id"]: row for row in rows}
    narrow = SequenceDefinition(
        name="engaged", events=ENGAGED.events, columns=["item_id", "event_ts", "surface"], last_n=N, owner="benchmarks"
    )
    accepted = naive.accept(LOG, events, int(time.time() * 1e6))
    required = naive.timelines(LOG, [narrow], accepted.events, {})
    store = open_online(folder / "online", lake.catalog, "lake")
    requests = requests_of(lake, NUM_REQUESTS).to_pylist()
    num = 0
    for request in requests:
        if request["user_id"] not in chosen:
            continue
        at_us, timeline = _micros(request["request_ts"]), required.of_user.get(request["user_id"], [])
        sequence = naive.sequence_at(narrow, timeline, naive.history_end(timeline, at_us), at_us)
        found = store.fetch(request["user_id"], "engaged", at_us=at_us)
        for name in narrow.columns:
            assert found[name].tolist() == [event[name] for event in sequence], f"request {request}: {name} differs"
        categories = [by_item[event["item_id"]]["category"] for event in sequence]
        assert found["category"].tolist() == categories, f"request {request}: category differs"
        num += 1
    store.close()
    yield {
        "claim": "online = plain loops",
        "variant": "requests compared",
        "value": num,
        "unit": "requests, 0 differ",
        "target": None,
        "sizes": sizes(lake),
    }


def _micros(moment: Any) -> int:
    return int(np.datetime64(moment.replace(tzinfo=None), "us").astype(np.int64))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description=__doc__.splitlines()[0])
    names = [
        "daily",
        "histories",
        "equal",
        "fetch",
        "compaction",
        "pointers",
        "correction",
        "standing",
        "daily_ten",
        "memory",
    ]
    parser.add_argument("--only", nargs="*", choices=names, help="some of them; nothing is recorded then")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--days", type=int, default=45)
    parser.add_argument("--measured", type=int, default=7, help="days that are appended one by one")
    arguments = parser.parse_args(argv)
    chosen = arguments.only or names
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="reqdedup-sequences-") as name:
        folder = Path(name)
        config = SyntheticEventsConfig(
            num_users=arguments.users, num_days=arguments.days, num_items=100_000, num_categories=400
        )
        lake = Lake(folder, config, arguments.measured)
        steps = {
            "daily": lambda: daily(lake, folder, arguments.measured),
            "equal": lambda: equal(lake, folder),
            "fetch": lambda: fetches(lake, folder),
            "compaction": lambda: compaction(lake, folder, arguments.rounds),
            "histories": lambda: histories(lake, arguments.rounds),
            "pointers": lambda: pointers(lake, folder),
            "correction": lambda: correction(lake),
            "standing": lambda: standing(folder, config),
            "daily_ten": lambda: daily_ten(folder, config),
            "memory": memory,
        }
        for step, measure in steps.items():
            if step in chosen or step == "daily":  # which brings the timeline to the end
                for row in measure():
                    rows.append(row)
                    print(line(row), flush=True)
    if arguments.only is None:
        print(write_results("sequences", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
