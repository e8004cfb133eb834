"""One whole `make run` of a recipe: time, CPU, memory, and what its models are worth.

    python -m benchmarks.whole_run --recipe full --folder NEW_FOLDER

The graph runs in a process of its own, its tables, models and Dagster's history in the folder. Memory is the
proportional share (Pss) of the process and everything below it, read every second: pages that ranks share count once.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import write_results

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("retrieval_model", "ranking_model")
STAGE_DONE = re.compile(r"^ *[\d.]+ s +(\w+) +done in ([\d.]+) s$")
FIGURES = re.compile(r"auc_|user_auc_|request_auc_|log_loss_|mean_log_rank$|recall_at_100$|ndcg_at_10$")


@dataclass
class MemoryWatch:
    """The most that a process and everything below it held at once [bytes]."""

    pid: int
    peak_bytes: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        while not self.ended.wait(1.0):
            self.peak_bytes = max(self.peak_bytes, sum(self._held()))

    def _held(self) -> Iterator[int]:
        try:
            root = psutil.Process(self.pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for one in processes:
            try:
                yield one.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue


def whole_run(recipe: str, folder: Path) -> list[dict[str, Any]]:
    """Result rows of one run. Raises RuntimeError if it fails."""
    home = folder / "dagster"
    home.mkdir(parents=True)
    shutil.copy(ROOT / "pipelines" / "dagster.yaml", home)
    surroundings = os.environ | {"DAGSTER_HOME": str(home), "REQDEDUP_DATA_DIR": str(folder / "data")}
    command = [sys.executable, "-m", "pipelines.run", "--recipe", recipe]
    started, stages = time.perf_counter(), {}
    with subprocess.Popen(command, cwd=ROOT, env=surroundings, stderr=subprocess.PIPE, text=True) as process:
        watch = MemoryWatch(process.pid)
        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            if found := STAGE_DONE.match(line.rstrip()):
                stages[found[1]] = float(found[2])
        code = process.wait()
        watch.ended.set()
        watcher.join()
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise RuntimeError(f"a whole run of recipe {recipe}: exit code 0 required, found {code}; see its output")
    of_run: dict[str, Any] = {"claim": f"whole run, recipe {recipe}", "target": None, "sizes": {"recipe": recipe}}
    rows = [
        {**of_run, "variant": "wall time", "value": seconds, "unit": "s", "stages_s": stages},
        {**of_run, "variant": "CPU time", "value": used.ru_utime + used.ru_stime, "unit": "s"},
        {**of_run, "variant": "peak memory, all processes", "value": watch.peak_bytes, "unit": "bytes"},
    ]
    for model in MODELS:
        rows += [{**of_run, **row} for row in model_rows(folder / "data" / "models" / recipe / model)]
    return rows


def model_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The held-out figures of a trained model, each beside chance and the best baseline."""
    result = json.loads((folder / "result.json").read_text())
    training = {name: result[name] for name in ("steps", "epochs", "stopped_by", "training_s", "peak_memory_bytes")}
    for row in result["judgement"]["figures"]:
        if row["slice"] == "all" and FIGURES.match(row["metric"]):
            yield {
                "variant": f"{folder.name}: {row['metric']}",
                "value": row["value"],
                "unit": row["metric"],
                "spread": [row["low"], row["high"]],
                "chance": row["chance"],
                "best_baseline": row["best_baseline"],
                "baseline": row["baselines"].get(row["best_baseline"]),
                "training": training,
            }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_run", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="full", help="of `make run` (default full)")
    parser.add_argument("--folder", type=Path, required=True, help="a new one, for tables, models and history")
    arguments = parser.parse_args(argv)
    if arguments.folder.exists():
        parser.error(f"--folder: a new folder required, found {arguments.folder}; name another, or remove it")
    rows = whole_run(arguments.recipe, arguments.folder.resolve())
    write_results(f"whole_run_{arguments.recipe}", rows)
    for row in rows:
        print(f"{row['variant']:<48} {row['value']:>16.6g} {row['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
