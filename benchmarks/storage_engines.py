"""What writing by tasks costs beside writing by one process, and what two processes gain.

    python -m benchmarks.storage_engines [--times 10]
    python -m benchmarks.storage_engines --break-even
    python -m pipelines.ray_cluster python -m benchmarks.storage_engines --break-even    # and on a Ray cluster

A log in the order of its arrival, ARRIVAL -> BY_REQUEST, so many times the laptop recipe's. Variants are processes of
their own, in turns; a variant's CPU counts its workers. `write` is what tasks are compared with; `write and checksums`
takes the two checksums that tasks always take. Gate: files of all variants are the same, bit for bit.
The driver's memory is measured on its own, with an engine that does nothing: 10,000 maps and 1,000 buckets.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.own_process import Measured, in_turns, measure, shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog
from reqdedup.dedup.checksum import ContentChecksum, content_checksum
from reqdedup.environment import ENGINE_VARIABLE, variables
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.storage.tasks.shuffle import ReduceTasks
from reqdedup.storage.write.exchange import Exchanged

MODULE = "benchmarks.storage_engines"
LAPTOP_USERS, NUM_BUCKETS, ROUNDS = 2_000, 8, 3
MAPS, BUCKETS = 10_000, 1_000
CLAIM = "a log written by tasks"
BREAK_EVEN = (0.1, 0.3, 1, 3, 10)
"""Of the laptop recipe's log: where more processes begin to pay, their start counted."""

CLUSTER = "cluster"
DRIVER = "driver"
VARIANTS = {"write": "inline", "write and checksums": "inline", "one process": "processes:1", "two": "processes:2"}


def log_of(times: float) -> SyntheticLogConfig:
    """Histories of up to 256 events, F about 40."""
    return SyntheticLogConfig(
        num_users=max(int(LAPTOP_USERS * times), 4),
        mean_requests_per_user=3,
        mean_fan_out=30,
        max_fan_out=200,
        history_scale=1 / 60,
        max_history=256,
    )


def child(folder: Path, variant: str) -> str:
    """Measure one variant in this process; its answer: a hash of its files, bytes exchanged, peak of its workers."""
    if variant == DRIVER:
        return measure(driver)
    catalog = local_catalog(folder)
    source = TableSource(catalog.load_table("bench.raw"))
    name = f"bench.{variant.replace(' ', '_')}"
    if catalog.table_exists(name):
        catalog.purge_table(name)
    table = create_table(catalog, name, source.schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    exchanged = []

    def run() -> None:
        report = write(table, source, engine=VARIANTS.get(variant))  # of a cluster: what REQDEDUP_ENGINE names
        if variant == "write and checksums":
            content_checksum(source)
            content_checksum(TableSource(table))
        exchanged.append(report.spill_bytes)

    def answer() -> Any:
        files = [(f.file.partition[0], f.file.file_path.removeprefix("file://")) for f in table.scan().plan_files()]
        digest = hashlib.blake2b(b"".join(hashlib.blake2b(Path(p).read_bytes()).digest() for _, p in sorted(files)))
        workers = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "files": digest.hexdigest()[:16],
            "exchanged": exchanged[-1],
            "worker_peak": workers.ru_maxrss * 1024,
            "worker_cpu": workers.ru_utime + workers.ru_stime,
        }

    return measure(run, check=answer)


def driver() -> None:
    """What 10,000 maps tell the driver, and every task made of it once."""
    partitions = np.arange(BUCKETS, dtype=np.int32)
    maps = [
        Exchanged(
            path=f"s3://bucket/warehouse/table/_exchange/{'0' * 32}-map{number}-{'0' * 12}.arrows",
            partitions=partitions.copy(),
            ends=np.arange(1, BUCKETS + 1) * 1000,
            num_requests=np.ones(BUCKETS, np.int32),
            num_rows=np.zeros(0, np.int32),  # the driver adds them up
            checksum=ContentChecksum(BUCKETS, 0),
        )
        for number in range(MAPS)
    ]
    tasks = ReduceTasks(maps, dict.fromkeys(range(BUCKETS), MAPS), "0" * 32)
    for number in range(0, len(tasks), 100):
        assert len(tasks[number].ranges) == MAPS


def rows_of(measured: dict[str, list[Measured]], sizes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Result rows of the variants."""

    def cpu(run: Measured) -> float:
        return run.cpu + run.answer["worker_cpu"]

    def row(claim: str, variant: str, values: list[float], unit: str, target: float | None) -> dict[str, Any]:
        return {
            **{"claim": f"{CLAIM}: {claim}", "variant": variant, "value": statistics.median(values), "unit": unit},
            **{"target": target, "spread": [min(values), max(values)], "runs": len(values), "sizes": sizes},
        }

    for baseline, target in (("write", 1.6), ("write and checksums", 1.3)):
        ratios = [cpu(ours) / cpu(theirs) for ours, theirs in zip(measured["one process"], measured[baseline])]
        yield row("CPU", f"against {baseline}", ratios, "times the CPU", target)
    walls = [one.wall / two.wall for one, two in zip(measured["one process"], measured["two"])]
    yield row("wall time", "one process against two", walls, "times", 1.8)
    exchanged = [float(run.answer["exchanged"]) for run in measured["one process"]]
    yield row("bytes exchanged", "zstd", exchanged, "bytes", None)
    peaks = [float(run.answer["worker_peak"]) for run in measured["one process"]]
    yield row("peak memory of a worker", "imports included", peaks, "bytes", None)


def run(folder: Path, *, times: float, rounds: int) -> Iterator[dict[str, Any]]:
    """All result rows. Raises ValueError if the files of two variants differ."""
    log = log_of(times)
    raw = create_table(local_catalog(folder), "bench.raw", synthetic_schema(log), Layout.ARRIVAL)
    report = write(raw, synthesize(log))
    sizes = {"rows": report.rows, "requests": report.requests, "buckets": NUM_BUCKETS}
    measured = in_turns(MODULE, list(VARIANTS), ["--folder", str(folder)], rounds=rounds, compare=False)
    files = {run.answer["files"] for runs in measured.values() for run in runs}
    if len(files) > 1:
        raise ValueError(f"the same files of every variant required, found {len(files)} kinds")
    yield from rows_of(measured, sizes)
    [alone] = in_turns(MODULE, [DRIVER], ["--folder", str(folder)], rounds=1, compare=False)[DRIVER]
    yield {
        **{"claim": "driver memory", "variant": "10,000 maps x 1,000 buckets", "value": alone.peak},
        **{"unit": "bytes", "target": 250e6, "sizes": {"maps": MAPS, "buckets": BUCKETS}},
    }


def break_even(folder: Path, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Wall time of one process against that of two, and of the cluster that REQDEDUP_ENGINE names, by size."""
    engine = variables().get(ENGINE_VARIABLE, "")
    variants = ["write", "two", *([CLUSTER] if engine.startswith("ray") else [])]
    for times in BREAK_EVEN:
        log, place = log_of(times), folder / f"{times:g}"
        place.mkdir()
        raw = create_table(local_catalog(place), "bench.raw", synthetic_schema(log), Layout.ARRIVAL)
        report = write(raw, synthesize(log), engine="inline")
        sizes = {"rows": report.rows, "stored_bytes": report.bytes, "buckets": NUM_BUCKETS}
        measured = in_turns(MODULE, variants, ["--folder", str(place)], rounds=rounds, compare=False)
        for variant in variants[1:]:
            ratios = [one.wall / more.wall for one, more in zip(measured["write"], measured[variant])]
            yield {
                **{"claim": f"{CLAIM}: break-even", "variant": f"{variant}, {times:g} laptop logs", "unit": "times"},
                **{"value": statistics.median(ratios), "target": None, "spread": [min(ratios), max(ratios)]},
                **{"runs": len(ratios), "sizes": sizes},
            }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=float, default=10, help="the laptop recipe's log (default 10)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each variant (default {ROUNDS})")
    parser.add_argument("--break-even", action="store_true", help="from which size on processes pay, and nothing else")
    parser.add_argument("--no-record", action="store_true", help="print alone")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(child(arguments.folder, arguments.measure))
        return 0
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="storage_engines") as temporary:
        folder = Path(temporary)
        found = break_even(folder, rounds=arguments.rounds) if arguments.break_even else None
        for row in found or run(folder, times=arguments.times, rounds=arguments.rounds):
            rows.append(row)
            print(shown(row), flush=True)
    print(f"{time.monotonic() - started:.0f} s")
    if not arguments.no_record:
        print(write_results("storage_engines_break_even" if arguments.break_even else "storage_engines", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
