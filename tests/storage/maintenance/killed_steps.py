"""`kill -9` at each step of an operation: `python -m tests.storage.maintenance.killed_steps FOLDER OPERATION`, one line per step.

A step is a data file that is about to be closed, or a commit before or after the catalog has taken it. For every step a
forked child gets the same prepared tables, runs the operation and kills itself there; another looks at what is left, as
a reader does, and runs the operation again. Forking saves the imports, which take longer than all the rest. It ends with
the number of steps, once an operation comes through without meeting its step.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog

from reqdedup.storage.iceberg.datafile import DataFileWriter


class Operation(Protocol):
    """prepare: the tables.  run: the operation, complete, whatever an earlier run has left.
    check: raises AssertionError unless readers see the old state or the new one, whole; done: it must be the new one."""

    def prepare(self, catalog: Catalog) -> None: ...

    def run(self, catalog: Catalog) -> None: ...

    def check(self, catalog: Catalog, *, done: bool) -> None: ...


def open_catalog(folder: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


def kill_at(step: int) -> None:
    """Make this process kill itself at its `step`-th step from here."""
    steps = itertools.count(1)

    def die_at_step() -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    close, commit = DataFileWriter.close, SqlCatalog.commit_table

    def closing(*arguments, **options):
        die_at_step()
        return close(*arguments, **options)

    def committing(*arguments, **options):
        die_at_step()
        response = commit(*arguments, **options)
        die_at_step()
        return response

    DataFileWriter.close, SqlCatalog.commit_table = closing, committing


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child process; its exit status, negative where a signal ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at_every_step(folder: Path, operation: Operation) -> int:
    """Steps of the operation, each of which it was killed at and recovered from."""
    state, prepared = folder / "state", folder / "prepared"
    state.mkdir()
    if forked(lambda: operation.prepare(open_catalog(state))):
        raise AssertionError("prepare failed")
    state.rename(prepared)
    for step in itertools.count(1):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(prepared, state)  # the same path as before: metadata files name it

        def killed(step: int = step) -> None:
            catalog = open_catalog(state)
            kill_at(step)
            operation.run(catalog)

        def recovered() -> None:
            catalog = open_catalog(state)
            operation.check(catalog, done=False)
            operation.run(catalog)
            operation.check(catalog, done=True)

        status = forked(killed)
        if status == 0:
            return step - 1
        if status != -signal.SIGKILL:
            raise AssertionError(f"step {step}: ended with {status} before it was killed")
        if forked(recovered):
            raise AssertionError(f"step {step}: not whole afterwards")
        print(f"step {step}: killed and recovered", flush=True)
    raise AssertionError


if __name__ == "__main__":
    module, _, name = sys.argv[2].rpartition(".")
    print(kill_at_every_step(Path(sys.argv[1]), getattr(importlib.import_module(module), name)()))
