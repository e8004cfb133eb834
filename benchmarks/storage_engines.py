"""What writing by tasks costs beside writing by one process, and what more processes, or nodes, gain.

    python -m benchmarks.storage_engines [--times 10]
    python -m benchmarks.storage_engines --break-even
    python -m benchmarks.storage_engines --ray 1 10 60    # one node against two; root makes their network namespaces
    python -m pipelines.ray_cluster --cores 1 python -m benchmarks.storage_engines --break-even    # with a Ray cluster

A log in the order of its arrival, ARRIVAL -> BY_REQUEST, so many times the laptop recipe's. Variants are processes of
their own, in turns. Gate: files of all variants are the same, bit for bit.
`write` is what tasks are compared with. Tasks take two checksums that it does not, of what they read and of what they
find in their files: `write and checksums` takes them too (`the same guarantees`), `tasks without checksums` leaves
them out. Processes have started, and imported what they need, before time and CPU are taken, but for `--break-even`.
The driver's memory is measured on its own, with an engine that does nothing: 10,000 maps and 1,000 buckets.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from benchmarks.own_process import Measured, in_turns, measure, shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog
from reqdedup.dedup.checksum import ContentChecksum, RunningChecksum, content_checksum
from reqdedup.distributed import Engine, Inline
from reqdedup.distributed.engine import named_engine
from reqdedup.environment import ENGINE_VARIABLE, variables
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.storage.tasks import parts, shuffle
from reqdedup.storage.tasks.shuffle import ReduceTasks
from reqdedup.storage.write.exchange import Exchanged

MODULE = "benchmarks.storage_engines"
LAPTOP_USERS, NUM_BUCKETS, ROUNDS = 2_000, 8, 3
MAPS, BUCKETS = 10_000, 1_000
MOST = {"maps": MAPS, "buckets": BUCKETS}
CLAIM = "a log written by tasks"
BREAK_EVEN = (0.1, 0.3, 1, 3, 10)
"""Of the laptop recipe's log: where more processes begin to pay, their start counted."""

CLUSTER, TASKS = "cluster", "tasks without checksums"
DRIVER, MAP, WHOLE = "driver", "map", "whole"
VARIANTS = {
    "write": "inline",
    "write and checksums": "inline",
    TASKS: "",
    "one process": "processes:1",
    "two": "processes:2",
}


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


class Tasks(Inline):
    """Tasks, one after the other in this process, as other processes have them."""

    name, is_here = "tasks", False

    def run(self, work: Any, tasks: Any) -> Any:
        yield from super().run(pickle.loads(pickle.dumps(work)), tasks)


def engine_of(variant: str) -> Engine:
    """Of a cluster: the one that REQDEDUP_ENGINE names."""
    return Tasks() if variant == TASKS else named_engine(VARIANTS.get(variant) or variables()[ENGINE_VARIABLE])


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Tasks count their rows, and look at no value of them."""

    def through(self: RunningChecksum, batches: Any) -> Iterator[Any]:
        for batch in batches:
            self.add(batch.num_rows, np.zeros(0, np.uint64))
            yield batch

    with (
        mock.patch.object(RunningChecksum, "through", through),
        mock.patch.object(shuffle, "content_checksum", return_value=ContentChecksum()),
    ):
        yield


def child(folder: Path, variant: str, *, cold: bool) -> str:
    """Measure one variant in this process. Its answer: a hash of its files, bytes exchanged; of its workers the peak
    of memory, and their CPU time."""
    if variant == DRIVER:
        return measure(driver)
    catalog = local_catalog(folder)
    source = TableSource(catalog.load_table("bench.raw"))
    table = new_table(catalog, variant.replace(" ", "_"), source)
    if variant in (MAP, WHOLE):
        return measure(lambda: one_map(source, table, whole=variant == WHOLE))
    engine, exchanged = engine_of(variant), list[int]()
    if not (cold or engine.is_here):
        write(new_table(catalog, "small_target", source), TableSource(catalog.load_table("bench.small")), engine=engine)
    pids = [worker.process.pid for worker in getattr(engine, "_workers", [])]
    started = cpu_of(pids)

    def run() -> None:
        report = write(table, source, engine=engine)
        if variant == "write and checksums":
            content_checksum(source)
            content_checksum(TableSource(table))
        exchanged.append(report.spill_bytes)

    def answer() -> Any:
        files = [(f.file.partition[0], f.file.file_path.removeprefix("file://")) for f in table.scan().plan_files()]
        digest = hashlib.blake2b(b"".join(hashlib.blake2b(Path(p).read_bytes()).digest() for _, p in sorted(files)))
        return {
            "files": digest.hexdigest()[:16],
            "exchanged": exchanged[-1],
            "worker_peak": max((peak_of(pid) for pid in pids), default=0),
            "worker_cpu": cpu_of(pids) - started,
        }

    with without_checksums() if variant == TASKS else contextlib.nullcontext():
        return measure(run, check=answer)


def new_table(catalog: Catalog, name: str, source: TableSource) -> Table:
    if catalog.table_exists(f"bench.{name}"):
        catalog.purge_table(f"bench.{name}")
    return create_table(catalog, f"bench.{name}", source.schema, Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)


def one_map(source: TableSource, table: Table, *, whole: bool) -> int:
    """Bytes of the exchange file of one map task, or of one that has all rows."""
    with mock.patch.object(parts, "MAP_ROWS", sys.maxsize if whole else parts.MAP_ROWS):
        groups = parts.row_groups_of(source, source.schema)
        work = shuffle.Shuffle(table=shuffle.PortableTable(table), schema=source.schema, updates=())
        [task, *_] = shuffle.map_tasks(groups, "0" * 32)
        return shuffle.MapWork(shuffle=work, source=groups).run(task).num_bytes


def cpu_of(pids: list[int]) -> float:
    """Seconds of CPU that these processes have taken."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def peak_of(pid: int) -> int:
    """Most bytes that a process has held, its imports among them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


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

    for tasks, baseline, target in (
        ("one process", "write", 1.6),
        ("one process", "write and checksums", 1.3),
        (TASKS, "write", 1.3),
    ):
        ratios = [cpu(ours) / cpu(theirs) for ours, theirs in zip(measured[tasks], measured[baseline])]
        which = "without checksums against write" if tasks == TASKS else f"against {baseline}"
        yield row("CPU", which, ratios, "times the CPU", target)
    for variant in ("write", "one process"):
        of_row = [1e6 * cpu(run) / sizes["rows"] for run in measured[variant]]
        yield row("CPU of a row", "tasks" if variant == "one process" else variant, of_row, "us", None)
    walls = [one.wall / two.wall for one, two in zip(measured["one process"], measured["two"])]
    yield row("wall time", "one process against two", walls, "times", 1.8)
    exchanged = [float(run.answer["exchanged"]) for run in measured["one process"]]
    yield row("bytes exchanged", "zstd", exchanged, "bytes", None)
    peaks = [float(run.answer["worker_peak"]) for run in measured["one process"]]
    yield row("peak memory of a worker", "imports included", peaks, "bytes", None)


def run(folder: Path, *, times: float, rounds: int) -> Iterator[dict[str, Any]]:
    """All result rows. Raises ValueError if the files of two variants differ."""
    sizes = make_log(folder, times)
    measured = in_turns(MODULE, list(VARIANTS), ["--folder", str(folder)], rounds=rounds, compare=False)
    files = {run.answer["files"] for runs in measured.values() for run in runs}
    if len(files) > 1:
        raise ValueError(f"the same files of every variant required, found {len(files)} kinds")
    yield from rows_of(measured, sizes)
    alone = {
        variant: in_turns(MODULE, [variant], ["--folder", str(folder)], rounds=1, compare=False)[variant][0]
        for variant in (WHOLE, MAP, DRIVER)
    }
    ratio = measured["one process"][0].answer["exchanged"] / alone[WHOLE].answer
    for claim, variant, value, unit, target, of in (
        (f"{CLAIM}: bytes exchanged", "against one exchange file of all rows", ratio, "times", 1.2, sizes),
        (f"{CLAIM}: peak memory of a map task", "imports apart", alone[MAP].peak, "bytes", 300e6, sizes),
        ("driver memory", "10,000 maps x 1,000 buckets", alone[DRIVER].peak, "bytes", 250e6, MOST),
    ):
        yield {"claim": claim, "variant": variant, "value": value, "unit": unit, "target": target, "sizes": of}


def make_log(folder: Path, times: float) -> dict[str, Any]:
    """The table that variants read, and a small one, by which their processes start; sizes of the first."""
    catalog, reports = local_catalog(folder), []
    for name, size in (("small", 0.01), ("raw", times)):
        log = log_of(size)
        raw = create_table(catalog, f"bench.{name}", synthetic_schema(log), Layout.ARRIVAL)
        reports.append(write(raw, synthesize(log), engine="inline"))
    report = reports[-1]
    return {
        **{"rows": report.rows, "requests": report.requests, "stored_bytes": report.bytes},
        **{"buckets": NUM_BUCKETS, "laptop_logs": times},
    }


def on_ray(folder: Path, times: float, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Wall time of one node of one core against that of two, each in a network namespace of its own, and the same bits
    on both as by one process."""
    sizes = make_log(folder, times)
    [here] = in_turns(MODULE, ["write"], ["--folder", str(folder)], rounds=1)["write"]
    walls: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for nodes in (1, 2) if number % 2 == 0 else (2, 1):
            cluster = ["pipelines.ray_cluster", "--nodes", str(nodes), "--cores", "1", sys.executable, "-m"]
            command = [sys.executable, "-m", *cluster, MODULE, "--folder", str(folder), "--measure", CLUSTER]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{MODULE}: on Ray with {nodes} nodes:\n{done.stderr}")
            found = Measured(**json.loads(done.stdout.splitlines()[-1]))
            if found.answer["files"] != here.answer["files"]:
                raise ValueError(f"the files of one process required of Ray with {nodes} nodes, found others")
            print(f"{MODULE}: Ray, {nodes} nodes, {found.wall:.1f} s, the same bits", file=sys.stderr, flush=True)
            walls[nodes].append(found.wall)
    ratios = [one / two for one, two in zip(walls[1], walls[2])]
    yield {
        **{"claim": f"{CLAIM}: wall time on Ray", "variant": f"one node against two, {times:g} laptop logs"},
        **{"value": statistics.median(ratios), "unit": "times", "target": 1.8 if times >= 60 else None},
        **{"spread": [min(ratios), max(ratios)], "runs": len(ratios), "sizes": sizes, "same_bits": True},
        **{"seconds": [statistics.median(walls[1]), statistics.median(walls[2])], "inline_seconds": here.wall},
    }


def break_even(folder: Path, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Wall time of one process against that of two, and of the cluster that REQDEDUP_ENGINE names, by size."""
    variants = ["write", "two", *([CLUSTER] if variables().get(ENGINE_VARIABLE, "").startswith("ray") else [])]
    for times in BREAK_EVEN:
        place = folder / f"{times:g}"
        sizes = make_log(place, times)
        measured = in_turns(MODULE, variants, ["--folder", str(place), "--cold"], rounds=rounds, compare=False)
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
    parser.add_argument("--ray", type=float, nargs="+", metavar="TIMES", help="one node against two, and nothing else")
    parser.add_argument("--no-record", action="store_true", help="print alone")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(child(arguments.folder, arguments.measure, cold=arguments.cold))
        return 0
    started, rows, rounds = time.monotonic(), [], arguments.rounds
    with tempfile.TemporaryDirectory(prefix="storage_engines") as temporary:
        folder, name = Path(temporary), "storage_engines"
        found: Iterator[dict[str, Any]]
        if arguments.ray:
            name += "_ray"
            found = (row for times in arguments.ray for row in on_ray(folder / f"{times:g}", times, rounds=rounds))
        elif arguments.break_even:
            name += "_break_even"
            found = break_even(folder, rounds=rounds)
        else:
            found = run(folder, times=arguments.times, rounds=rounds)
        for row in found:
            rows.append(row)
            print(shown(row), flush=True)
    print(f"{time.monotonic() - started:.0f} s")
    if not arguments.no_record:
        print(write_results(name, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
