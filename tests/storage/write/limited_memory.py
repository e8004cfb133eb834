"""A write by tasks that may have so much memory: `python -m tests.storage.write.limited_memory FOLDER ROWS MIB`.

ROWS: of a bucket that are held at once.  MIB: of private memory beyond what the process has when it begins.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.storage.write import arrange
from tests.distributed.listening import Listening
from tests.storage.tasks.killed_driver import open_lake


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


if __name__ == "__main__":
    folder, rows, mib = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    lake = open_lake(folder)
    source = TableSource(lake.load_table("test.source"))
    table = create_table(lake, f"test.held_{rows}", source.schema, Layout.BY_REQUEST, num_buckets=1)
    small = create_table(lake, f"test.small_{rows}", source.schema, Layout.BY_REQUEST, num_buckets=1)
    write(small, TableSource(lake.load_table("test.small")), engine=Listening())  # threads and imports come before
    arrange.RANGE_ROWS = rows
    most = data_bytes() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    print(write(table, source, engine=Listening()).rows)
