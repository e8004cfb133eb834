"""Drivers to be killed: `python -m tests.storage.tasks.killed_driver FOLDER ENGINE`, which says when it begins to write,
and when it has ended. With a third argument it forks one for each line that it reads, and says when all of it is gone.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyiceberg.catalog import Catalog, load_catalog

from reqdedup.storage import TableSource, write
from reqdedup.storage.tasks import parts

PR_SET_CHILD_SUBREAPER = 36


def open_lake(folder: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


def write_once(folder: Path, engine: str) -> None:
    lake = open_lake(folder)
    parts.MAP_ROWS = 1  # a task for each row group
    print(f"begins {os.getpid()}", flush=True)
    write(lake.load_table("test.t"), TableSource(lake.load_table("test.source")), engine=engine)
    print("ended", flush=True)


def fork_drivers(folder: Path, engine: str) -> None:
    """One after the other, without its imports: they take longer than what it writes."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # workers of a driver that is gone are ours to wait for
    for _ in sys.stdin:
        if os.fork() == 0:
            try:
                write_once(folder, engine)
            except BaseException as error:
                print(f"failed: {error!r}", flush=True)
            os._exit(0)
        try:
            while True:
                os.wait()
        except ChildProcessError:
            print("gone", flush=True)


class Drivers:
    """Those that `fork_drivers` makes, seen from the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._lines, self._said = process.stdin, process.stdout

    def begin(self) -> int:
        """Let one write; its process id."""
        self._lines.write("\n")
        self._lines.flush()
        begins, pid = self._said.readline().split()
        assert begins == "begins"
        return int(pid)

    def wait(self) -> bool:
        """Whether it has ended by itself, once it and its workers are gone."""
        said = [self._said.readline()]
        while said[-1] != "gone\n":
            assert said[-1] == "ended\n", "of a driver that was not killed"
            said.append(self._said.readline())
        return "ended\n" in said


@contextmanager
def drivers(folder: Path, engine: str) -> Iterator[Drivers]:
    command = [sys.executable, "-m", __name__, str(folder), engine, "each"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Drivers(process)
        finally:
            process.kill()


if __name__ == "__main__":
    (write_once if len(sys.argv) < 4 else fork_drivers)(Path(sys.argv[1]), sys.argv[2])
