"""One run at a time makes the tables of a namespace: the row of `<namespace>.graph_run` says which.

A run claims the namespace with one commit that replaces the row it read. Iceberg catalogs take such a commit only if
nobody was faster, so of two runs that start at once exactly one goes on, in any catalog. A claim ends with its run;
that of a run that was killed counts no longer once its process is gone. From another machine that cannot be seen:
`take_over` decides.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import psutil
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import DoubleType, LongType, NestedField, StringType, TimestamptzType

from reqdedup.storage.iceberg.errors import is_conflict
from reqdedup.storage.iceberg.names import RUN_TABLE
from warehouse.tables import open_namespace, replace_rows

CLAIM_ATTEMPTS = 5
CLOCK_S = 5.0
"""Error allowed in a process's start time, which moves when somebody sets the clock."""

_SCHEMA = Schema(
    NestedField(1, "run_id", StringType(), required=True, doc="Dagster's id of the run"),
    NestedField(2, "log", StringType(), required=True, doc="path of its log, or which synthetic one"),
    NestedField(3, "host", StringType(), required=True, doc="machine that it runs on"),
    NestedField(4, "pid", LongType(), required=True, doc="its process there"),
    NestedField(5, "process_started", DoubleType(), required=True, doc="when that process began, seconds since 1970"),
    NestedField(6, "started", TimestamptzType(), required=True, doc="when the run claimed the namespace"),
    NestedField(
        7, "ended", TimestamptzType(), required=False, doc="when it ended; null while it runs or if it was killed"
    ),
)


class NamespaceTakenError(ValueError):
    """Another run is making the tables of the namespace."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, told apart from a later one of the same number.

    host: name of the machine.  pid: number of the process there.  process_started: seconds since 1970.
    """

    host: str
    pid: int
    process_started: float

    @classmethod
    def own(cls) -> Process:
        return cls(host=socket.gethostname(), pid=os.getpid(), process_started=psutil.Process().create_time())

    @classmethod
    def from_json(cls, text: str) -> Process:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def is_alive(self) -> bool | None:
        """Whether it runs; None if that cannot be seen: it is another machine's, or this user may not look at it."""
        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.process_started) < CLOCK_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, kw_only=True)
class GraphRun:
    """A run of the graph: its id, its log, its process, when it began and ended [UTC]."""

    run_id: str
    log: str
    process: Process
    started: datetime
    ended: datetime | None = None

    @classmethod
    def begin(cls, run_id: str, log: str) -> GraphRun:
        return cls(run_id=run_id, log=log, process=Process.own(), started=datetime.now(UTC))

    def __str__(self) -> str:
        return f"run {self.run_id} of {self.log}, {self.process}, started {self.started:%Y-%m-%d %H:%M:%S} UTC"


def claim(
    catalog: Catalog,
    namespace: str,
    run: GraphRun,
    *,
    is_finished: Callable[[str], bool] = lambda run_id: False,
    take_over: bool = False,
) -> None:
    """Make `run` the one that may write the tables of the namespace.

    is_finished: whether the run of this id is known to have ended, asked about runs of other machines.
    take_over: the run of another machine counts as ended; for one that died with its machine.
    Raises NamespaceTakenError that names the run that has the namespace.
    """
    open_namespace(catalog, namespace)
    # No retries: a claim must not be put on top of one that it did not see.
    table = catalog.create_table_if_not_exists(
        f"{namespace}.{RUN_TABLE}", _SCHEMA, properties={"commit.retry.num-retries": "0"}
    )
    for _ in range(CLAIM_ATTEMPTS):
        holder = _row(table)
        if holder is not None and holder.run_id != run.run_id and holder.ended is None:
            alive = holder.process.is_alive()
            if alive or (alive is None and not take_over and not is_finished(holder.run_id)):
                hint = "" if alive else ", or TAKE_OVER=1 (--take-over) if that process is dead"
                raise NamespaceTakenError(
                    f"namespace {namespace}: no other run in it required, found {holder}; wait until it has ended, or give this "
                    f"run a namespace of its own (NAMESPACE=<name>){hint}"
                )
        try:
            replace_rows(table, _rows(run))
        except Exception as error:
            if not is_conflict(error):
                raise
            table = catalog.load_table(table.name())  # not refreshed: a REST catalog may have let two make it at once
        else:
            return
    raise NamespaceTakenError(f"namespace {namespace}: other runs were faster {CLAIM_ATTEMPTS} times; try again later")


def release(catalog: Catalog, namespace: str, run_id: str) -> None:
    """End the claim of this run, if it still has the namespace."""
    try:
        table = catalog.load_table(f"{namespace}.{RUN_TABLE}")
    except NoSuchTableError:
        return
    holder = _row(table)
    if holder is not None and holder.run_id == run_id:
        replace_rows(table, _rows(replace(holder, ended=datetime.now(UTC))))


def _row(table: Table) -> GraphRun | None:
    for row in table.scan().to_arrow().to_pylist():
        process = Process(**{name: row.pop(name) for name in ("host", "pid", "process_started")})
        return GraphRun(process=process, **row)
    return None


def _rows(run: GraphRun) -> pa.Table:
    values = {"run_id": run.run_id, "log": run.log, **asdict(run.process), "started": run.started, "ended": run.ended}
    return pa.Table.from_pylist([values], schema=_SCHEMA.as_arrow())
