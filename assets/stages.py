"""What the assets of the graph share: `stage`, which measures each of them, their groups, owners and tags.

The groups read in the order of the data: storage, training, serving.
"""

import functools
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from reqdedup.distributed import counted

STORAGE: dict[str, Any] = {"group_name": "storage", "owners": ["team:storage"]}
TRAINING: dict[str, Any] = {"group_name": "training", "owners": ["team:modeling"]}
SERVING: dict[str, Any] = {"group_name": "serving", "owners": ["team:serving"]}

LOG, TABLE, CONTROL = {"role": "log"}, {"role": "table"}, {"role": "control"}
MODEL, REPORT = {"role": "model"}, {"role": "report"}
"""The tag of an asset, to select by: `dg launch --assets 'tag:role=report'`."""

WHEN_INPUTS_CHANGE = dg.AutomationCondition.eager()
"""Of reports: made again when what they are of has changed, once somebody switches the automation sensor on."""

TABLE_POOL = "tables"
"""Of steps that change tables outside the graph: one of them at a time (`dagster.yaml`). The graph has its namespace to
itself."""

WALL, CPU, PEAK, ENGINE = "wall_s", "cpu_s", "peak_memory_bytes", "engine"


def stage(**arguments: Any) -> Callable[[Callable[..., dg.MaterializeResult]], dg.AssetsDefinition]:
    """`dg.asset`, and its result says what it took: wall time, CPU time, peak memory; and
    of operations that are tasks, their engine, tasks, repetitions and bytes. arguments: of `dg.asset`.

    CPU time is that of this process and of those that it started and saw the end of, the ranks of a training among
    them. Peak memory is this process's; a stage that knows better, as a training does of its rank 0, says its own.
    """

    def decorate(make: Callable[..., dg.MaterializeResult]) -> dg.AssetsDefinition:
        @functools.wraps(make)
        def measured(*given: Any, **resources: Any) -> dg.MaterializeResult:
            _forget_peak()
            wall, cpu = time.perf_counter(), _cpu_s()
            with counted() as totals:
                result = make(*given, **resources)
            took = {WALL: time.perf_counter() - wall, CPU: _cpu_s() - cpu, PEAK: _peak_bytes()}
            said = dict(result.metadata or {})
            of = f"{said['namespace']}/" if "namespace" in said else ""
            numbers = {f"{of}{name}": value if name == PEAK else round(value, 2) for name, value in took.items()}
            ran = {name if name == ENGINE else f"{of}{name}": value for name, value in totals.figures.items() if totals}
            return dg.MaterializeResult(
                asset_key=result.asset_key,
                metadata=said | {name: number for name, number in (numbers | ran).items() if name not in said},
                check_results=result.check_results,
                data_version=result.data_version,
                tags=result.tags,
            )

        return dg.asset(**arguments)(measured)

    return decorate


def _cpu_s() -> float:
    return sum(os.times()[:4])


def _forget_peak() -> None:
    """So that the peak is that of one stage and not of those before it; only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> int:
    """Largest resident memory of this process since `_forget_peak`, or since its start where that is not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
