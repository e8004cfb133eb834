"""`train`: one model from one table on W ranks of this machine, with everything a run leaves behind.

    out_dir/run.json         configuration and data files; `python -m reqdedup.training out_dir/run.json` repeats it
    out_dir/metrics.csv      one row per step
    out_dir/result.json      its figures and snapshot id, written when it has ended
    out_dir/checkpoint.pt    weights, optimiser, loader positions, snapshot id; `resume=True` continues exactly there
    out_dir/bundle           what a server loads, written when it has ended (`reqdedup.models.bundle`)

A run that replaces another lies in out_dir/unfinished until it has ended (`reqdedup.training.replacing`).
The ranks open the snapshot's own files; no catalog, no data and no weights pass through this process.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reqdedup.models.checkpoint import CHECKPOINT_NAME, check_format, load_checkpoint
from reqdedup.training.columns import check_columns, check_files
from reqdedup.training.config import TrainingConfig, check_same_run
from reqdedup.training.devices import backend_of
from reqdedup.training.export import export_checkpoint
from reqdedup.training.judgement.baselines import judge_run
from reqdedup.training.launch import run_ranks
from reqdedup.training.metrics_file import METRICS_NAME
from reqdedup.training.plan import (
    Source,
    credentials_of,
    snapshot_id_of,
    source_for_ranks,
    source_from_dict,
    source_to_dict,
)
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.rank_run import RankResult, run_rank
from reqdedup.training.replacing import (
    BUNDLE_NAME,
    RUN_NAME,
    new_folder,
    put_in_place,
    resumed_folder,
    write_whole,
)
from reqdedup.training.report import RESULT_FORMAT, RESULT_NAME

RUN_FORMAT = 1
"""Version 0.1.0 wrote none, and its files are read."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run gives.

    metrics: held-out figures, each with `<name>_chance`.  judgement: the same with intervals, slices, calibration and
        baselines (`reqdedup.training.judgement.judge`); None if nobody was held out.
    losses: mean loss of every step [nats per term].
    stopped_by: what ended the training: steps, epochs (max_epochs) or patience.  best_step: of the weights that were
        kept, if there was a validation part, whose figures `validations` has as (step, figure).
    epochs: whole passes over the training users.  rows: trained on, over all ranks and steps.
    training_s, evaluation_s, total_s: the last with the start of the ranks.
    mean_wait_s, longest_wait_s: in steps for ranks that were not through with theirs, over the ranks, and of the one
        that waited longest: what the slowest rank costs.
    mean_core_busy, busiest_core_busy: share of the training that the machine's cores were busy, over all cores, and of
        the busiest; 0 if the system does not say.
    peak_memory_bytes: of the largest rank.  peak_device_memory_bytes: the same on its GPU, 0 without one.
    """

    checkpoint: Path
    metrics_file: Path
    metrics: dict[str, float]
    judgement: dict[str, Any] | None
    losses: list[float]
    steps: int
    stopped_by: str
    best_step: int
    validations: list[tuple[int, float]]
    epochs: int
    rows: int
    training_s: float
    evaluation_s: float
    total_s: float
    mean_wait_s: float
    longest_wait_s: float
    mean_core_busy: float
    busiest_core_busy: float
    peak_memory_bytes: int
    peak_device_memory_bytes: int

    @property
    def first_loss(self) -> float:
        """Mean over the first tenth of the steps."""
        count = max(1, len(self.losses) // 10)
        return sum(self.losses[:count]) / count

    @property
    def last_loss(self) -> float:
        """Mean over the last tenth of the steps."""
        count = max(1, len(self.losses) // 10)
        return sum(self.losses[-count:]) / count

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.training_s if self.training_s else 0.0


def train(
    config: TrainingConfig,
    source: Source,
    *,
    out_dir: Path | str,
    progress: Callable[[TrainingProgress], None] | None = None,
    resume: bool = False,
    snapshot_id: int | None = None,
) -> TrainingResult:
    """Train `config.model` on the source with `config.world_size` ranks, and evaluate it on held-out users.

    source: a TableSource or FileSource, a join or a sample, which nobody need write; another BatchSource must survive
        pickling and is read in full by every rank. Only a table or files leave a run.json; under torchrun call
        `reqdedup.training.torchrun.train_as_rank` with a join.
    progress: called in this process a few times a second.
    resume: continue from the checkpoint in out_dir, with the same batches and losses as without the interruption; if it
        is of another configuration or snapshot, ValueError is raised and the folder stays as it is.
    snapshot_id: of the table that a FileSource's files belong to; a TableSource says its own.
    Raises ValueError for what the log's columns or the files named cannot give (`reqdedup.training.columns`), before
    anything is written, and RankError with the error of the rank that failed first: a loss that is not finite, a rank
    that died or hung, a full disk. The last checkpoint stays usable.
    """
    started, config, out_dir = time.monotonic(), config.with_absolute_paths(), Path(out_dir)
    readable, snapshot_id = source_for_ranks(source), snapshot_id_of(source) or snapshot_id
    folder = begun_run(config, readable, out_dir, snapshot_id, resume)
    try:
        results: list[RankResult] = run_ranks(
            run_rank,
            config,
            readable,
            str(folder),
            snapshot_id,
            resume,
            credentials_of(readable),
            world_size=config.world_size,
            backend=backend_of(config.device),
            collective_timeout_s=config.collective_timeout_s,
            on_event=progress,
        )
    except BaseException:
        if folder != out_dir and not (folder / CHECKPOINT_NAME).exists():
            shutil.rmtree(folder)  # nothing in it can be resumed
        raise
    return ended_run(config, source, folder, out_dir, snapshot_id, results, started)


def begun_run(config: TrainingConfig, source: Source, out_dir: Path, snapshot_id: int | None, resume: bool) -> Path:
    """The folder in which the run is trained, with its run.json."""
    if not resume:
        check_columns(config, source.schema)
        check_files(config)
    out_dir.mkdir(parents=True, exist_ok=True)
    folder = resumed_folder(out_dir) if resume else new_folder(out_dir)
    if resume:
        checkpoint = folder / CHECKPOINT_NAME
        check_same_run(checkpoint, load_checkpoint(checkpoint), config, snapshot_id)
    folder.mkdir(exist_ok=True)
    _write_run(folder / RUN_NAME, config, source, snapshot_id, out_dir)
    return folder


def ended_run(
    config: TrainingConfig,
    source: Source,
    folder: Path,
    out_dir: Path,
    snapshot_id: int | None,
    results: Sequence[RankResult],
    started: float,
) -> TrainingResult:
    """Judge the run in `folder`, write its result and bundle, and put it in place as that of `out_dir`."""
    first = results[0]
    judgement = judge_run(config, source, first.outcomes, first.rivals)
    result = TrainingResult(
        checkpoint=out_dir / CHECKPOINT_NAME,
        metrics_file=out_dir / METRICS_NAME,
        metrics=first.metrics,
        judgement=judgement,
        losses=first.losses,
        steps=first.steps,
        stopped_by=first.stopped_by,
        best_step=first.best_step or first.steps,
        validations=first.validations,
        epochs=first.epochs,
        rows=first.rows,
        training_s=first.training_s,
        evaluation_s=first.evaluation_s,
        total_s=time.monotonic() - started,
        mean_wait_s=sum(rank.wait_s for rank in results) / len(results),
        longest_wait_s=max(rank.wait_s for rank in results),
        mean_core_busy=sum(first.core_busy) / max(1, len(first.core_busy)),
        busiest_core_busy=max(first.core_busy, default=0.0),
        peak_memory_bytes=max(rank.peak_memory_bytes for rank in results),
        peak_device_memory_bytes=max(rank.peak_device_memory_bytes for rank in results),
    )
    write_whole(folder / RESULT_NAME, json.dumps(_figures(result, snapshot_id), indent=2))
    export_checkpoint(folder / CHECKPOINT_NAME, source, folder / BUNDLE_NAME)
    put_in_place(folder, out_dir)
    return result


def _figures(result: TrainingResult, snapshot_id: int | None) -> dict[str, Any]:
    """The numbers of a result, for the report over several runs, and what it was trained on."""
    return {
        "format": RESULT_FORMAT,
        "snapshot_id": snapshot_id,
        "steps": result.steps,
        "epochs": result.epochs,
        "stopped_by": result.stopped_by,
        "best_step": result.best_step,
        "validations": result.validations,
        "rows": result.rows,
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "rows_per_s": result.rows_per_s,
        "training_s": result.training_s,
        "mean_wait_s": result.mean_wait_s,
        "longest_wait_s": result.longest_wait_s,
        "mean_core_busy": result.mean_core_busy,
        "busiest_core_busy": result.busiest_core_busy,
        "peak_memory_bytes": result.peak_memory_bytes,
        "peak_device_memory_bytes": result.peak_device_memory_bytes,
        **result.metrics,
        "judgement": result.judgement,
    }


def _write_run(path: Path, config: TrainingConfig, source: Source, snapshot_id: int | None, out_dir: Path) -> None:
    """The run as a file, if its source is files; without credentials, which remote files take from the environment."""
    files = source_to_dict(source)
    if files is None:
        return
    run = {
        "format": RUN_FORMAT,
        "training": config.to_dict(),
        **files,
        "snapshot_id": snapshot_id,
        "out_dir": str(out_dir.resolve()),
    }
    write_whole(path, json.dumps(run, indent=2))


def read_run(path: Path) -> tuple[TrainingConfig, Source, Path, int | None]:
    """(configuration, source, out_dir, snapshot id) of a run file. Raises ValueError if it is none."""
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        check_format(str(path), run, RUN_FORMAT)
        config = TrainingConfig.from_dict(run["training"]).with_absolute_paths()
        return config, source_from_dict(run), Path(run["out_dir"]), run.get("snapshot_id")
    except FileNotFoundError:
        raise ValueError(
            f"{path}: a run file (JSON) required, found no file; train() writes one as {RUN_NAME}"
        ) from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: a run file with training, paths, schema and out_dir required, found something else: {error!r}"
        ) from error


def export_run(run_dir: Path | str, out: Path | str, *, int8_tables: bool = False) -> Path:
    """Write the bundle of a run, finished or stopped, into the folder `out`; int8_tables: see `export_checkpoint`.

    Raises ValueError for a folder without checkpoint or run.json, which a run whose source is no files does not leave.
    """
    source = source_of_run(run_dir)
    return export_checkpoint(Path(run_dir) / CHECKPOINT_NAME, source, out, int8_tables=int8_tables)


def source_of_run(run_dir: Path | str) -> Source:
    """What a run was trained on. Raises ValueError for a folder without run.json."""
    return read_run(Path(run_dir) / RUN_NAME)[1]
