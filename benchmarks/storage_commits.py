"""What a commit costs in a table of many files: its seconds and the bytes of the manifests that it writes.

    python -m benchmarks.storage_commits [--quick]

Metadata alone: data files are listed and not written, as copies of one that is. A bucket of 1,000 is replaced in a
table of 100,000 files, by manifests of consecutive buckets and, as the baseline, by one manifest for all files; and
1,000 buckets to which ten appends came are compacted, which is all that `compact` does but reading and writing rows.
Gates: after each commit pyiceberg's own scan plans exactly the files that a plain count says.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from benchmarks.own_process import shown
from benchmarks.record import write_results
from benchmarks.tables import local_catalog
from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.distributed import Inline
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, create_table, write
from reqdedup.storage.iceberg import manifest_groups
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.layout import table_schema
from reqdedup.storage.iceberg.manifests import manifests_of
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.maintenance.live import by_partition, is_compact, live_files
from reqdedup.storage.tasks import GroupCommits, Part, groups_of

NUM_BUCKETS, NUM_FILES, NUM_APPENDS = 1_000, 100_000, 10
REPLACE, COMPACT = "one bucket replaced", "all buckets compacted, metadata alone"
LOG = SyntheticLogConfig(num_users=4, mean_requests_per_user=2, mean_fan_out=8, history_scale=1 / 60, max_history=64)


@dataclass(frozen=True, kw_only=True)
class ListTask:
    """A file to be listed as one that was written."""

    bucket: int
    write_id: str = ""

    @property
    def name(self) -> str:
        return f"bucket {self.bucket}"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Work that writes nothing, and says that it has written a copy of `like`."""

    like: DataFile

    def run(self, task: ListTask) -> Written:
        file = listed(self.like, task.bucket, task.write_id)
        checksum = ContentChecksum(file.record_count, 0)
        return Written(write_id=task.write_id, spec_id=0, files=((file, task.bucket),), requests=0, checksum=checksum)


def listed(like: DataFile, bucket: int, write_id: str) -> DataFile:
    """The same file under a new name, in another bucket."""
    file = copy.copy(like)
    file._data = list(like._data)
    folder, _, _ = like.file_path.rpartition("/")
    file[1] = f"{folder.rpartition('/')[0]}/user_bucket={bucket}/{write_id}-{bucket}-{uuid.uuid4().hex[:12]}.parquet"
    file[3] = Record(bucket)
    file.spec_id = like.spec_id
    return file


def add(table: Table, like: DataFile, buckets: Iterator[int] | range, *, removed: list[DataFile] | None = None) -> None:
    """One commit that lists a file in each of these buckets, in place of `removed`."""
    with StagedFiles(table) as files:
        own: list[tuple[DataFile, int | None]] = [(listed(like, bucket, files.write_id), bucket) for bucket in buckets]
        files._done = own
        files.commit(replace=removed is not None, removed=removed, rebase=True)


def check(table: Table, num_files: int) -> None:
    """Raise ValueError unless pyiceberg plans so many files, each once."""
    paths = [task.file.file_path for task in table.scan().plan_files()]
    if len(paths) != num_files or len(set(paths)) != num_files:
        raise ValueError(f"{num_files:,} files required, found {len(paths):,}, {len(set(paths)):,} of them distinct")


def written_bytes(table: Table, before: set[str]) -> int:
    """Of the manifests that are new."""
    snapshot = table.current_snapshot()
    return sum(one.manifest_length for one in manifests_of(table, snapshot) if one.manifest_path not in before)


def paths_of(table: Table) -> set[str]:
    return {one.manifest_path for one in manifests_of(table, table.current_snapshot())}


def empty_table(folder: Path, name: str, num_buckets: int) -> tuple[Table, DataFile]:
    """A table without rows, and a file like those that it would have."""
    catalog = local_catalog(folder)
    schema = synthetic_schema(LOG)
    like = create_table(catalog, f"bench.{name}_like", schema, Layout.BY_REQUEST, num_buckets=1)
    write(like, synthesize(LOG))
    table = create_table(catalog, f"bench.{name}", schema, Layout.BY_REQUEST, num_buckets=num_buckets)
    return table, live_files(like)[0].data_file


def replace_one(folder: Path, *, num_files: int, num_buckets: int) -> Iterator[dict[str, Any]]:
    """Result rows of one bucket replaced, of a table that one commit has written."""
    sizes = {"files": num_files, "buckets": num_buckets}
    grouped = manifest_groups.FILES_PER_MANIFEST
    for variant, limit in (("manifests of consecutive buckets", grouped), ("one manifest", num_files)):
        table, like = empty_table(folder, f"replace_{limit}", num_buckets)
        manifest_groups.FILES_PER_MANIFEST = limit
        try:
            add(table, like, (number % num_buckets for number in range(num_files)))
            check(table, num_files)
            bucket = num_buckets // 2
            old = [file.data_file for file in live_files(table) if file.partition == bucket]
            before, wall, cpu = paths_of(table), time.perf_counter(), time.process_time()
            add(table, like, range(bucket, bucket + 1), removed=old)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        finally:
            manifest_groups.FILES_PER_MANIFEST = grouped
        check(table, num_files - len(old) + 1)
        ours = limit == grouped
        about = {"sizes": sizes, "manifests": len(before), "wall_s": wall}
        yield {
            **{"claim": REPLACE, "variant": variant, "value": cpu, "unit": "CPU seconds"},
            **{"target": 0.5 if ours else None, **about},
        }
        yield {
            **{"claim": f"{REPLACE}: manifests written", "variant": variant, "value": written_bytes(table, before)},
            **{"unit": "bytes", "target": 2**20 if ours else None, **about},
        }


def compact_all(folder: Path, *, num_buckets: int) -> Iterator[dict[str, Any]]:
    """The result row of a compaction of all buckets, to each of which every append has added a file."""
    table, like = empty_table(folder, "compact", num_buckets)
    for _ in range(NUM_APPENDS):
        add(table, like, range(num_buckets))
    table = local_catalog(folder).load_table(table.name())
    check(table, NUM_APPENDS * num_buckets)
    wall, cpu = time.perf_counter(), time.process_time()
    layout, groups = Layout.BY_REQUEST, by_partition(live_files(table))
    due = {bucket: files for bucket, files in groups.items() if not is_compact(files, layout)}
    parts = [
        Part(ListTask(bucket=bucket or 0), tuple(file.data_file for file in files)) for bucket, files in due.items()
    ]
    commits = GroupCommits(table, table_schema(table), properties=lambda together: {})
    num_commits = sum(1 for _ in commits.run(Listing(like=like), groups_of(parts), Inline()))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    check(table, num_buckets)
    yield {
        **{"claim": COMPACT, "variant": "groups of buckets", "value": cpu, "unit": "CPU seconds", "target": 60},
        **{"sizes": {"files": NUM_APPENDS * num_buckets, "buckets": num_buckets}, "commits": num_commits},
        **{"manifests": len(paths_of(table)), "wall_s": wall},
    }


def run(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """All result rows."""
    buckets = 20 if quick else NUM_BUCKETS
    yield from replace_one(folder, num_files=2_000 if quick else NUM_FILES, num_buckets=buckets)
    yield from compact_all(folder, num_buckets=buckets)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage_commits", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="at a fiftieth of the size; nothing is recorded")
    arguments = parser.parse_args(argv)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(prefix="storage_commits") as temporary:
        rows = []
        for row in run(Path(temporary), quick=arguments.quick):
            rows.append(row)
            print(shown(row), flush=True)
    if not arguments.quick:
        print(write_results("storage_commits", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
