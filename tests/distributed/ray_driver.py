"""A driver on a Ray cluster, which prints what it found as JSON: `python -m tests.distributed.ray_driver FOLDER`.

FOLDER: of the lake of tests/storage/tasks/secret_lake.py, and for the marks of tasks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from reqdedup.distributed import Engine, counted, engine_for
from reqdedup.distributed.ray import Ray
from reqdedup.storage import TableSource, compact, write
from reqdedup.storage.tasks import parts
from tests.distributed.work import Square, Squares
from tests.storage.tasks.secret_lake import open_lake


def results(folder: Path, engine: Engine) -> list[list[int]]:
    """Of tasks of which some fail at first, in every way."""
    folder.mkdir()
    tasks = [Square(number, fault, once=True) for number, fault in enumerate(["", "kill", "disk", "memory", ""])]
    return sorted([number, result] for number, result in engine.run(Squares(folder), tasks))


def refused(folder: Path, engine: Engine, fault: str) -> dict[str, object]:
    """What a task that fails always ends with."""
    folder.mkdir()
    try:
        list(engine.run(Squares(folder), [Square(3, fault)]))
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        attempts = len(list(folder.iterdir()))
        return {"type": type(error).__name__, "text": str(error), "notes": notes, "attempts": attempts}
    return {}


def main(folder: Path) -> None:
    name = os.environ["REQDEDUP_ENGINE"]
    soon = Ray(name.removeprefix("ray:"), deadline_s=60)
    found = {"results": results(folder / "marks", soon), "retries": soon.retries}
    for fault in ("value", "memory"):
        found[fault] = refused(folder / fault, soon, fault)
    lake = open_lake(folder)
    parts.MAP_ROWS = 1_000
    with counted() as totals:
        write(lake.load_table("lake.shared"), TableSource(lake.load_table("lake.source")), engine=name)
        compact(lake.load_table("lake.shared"), force=True, engine=name)
    found["totals"] = totals.figures
    found["nodes"] = sorted({one.host for one in _nodes()})
    found["engine"] = engine_for(None, None, num_tasks=1).name
    print(json.dumps(found, default=lambda value: value.tolist() if isinstance(value, np.ndarray) else str(value)))


def _nodes():
    from reqdedup.distributed import ray

    return ray._alive_nodes().values()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
