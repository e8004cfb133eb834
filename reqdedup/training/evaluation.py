"""The held-out figures of a run again: of one that was stopped, or on the table as it is now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint
from reqdedup.training.judgement.baselines import judge_run
from reqdedup.training.judgement.judge import flat
from reqdedup.training.loop import RUN_NAME, read_run
from reqdedup.training.plan import Source, snapshot_id_of
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.rank_run import RankRun


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """metrics: held-out figures, each with `<name>_chance`.  judgement: with intervals, slices and baselines.

    task: ranking or retrieval.  step: of the checkpoint.
    snapshot_id: of the table that it was evaluated on.  trained_on: that it was trained on.
    """

    task: str
    step: int
    snapshot_id: int | None
    trained_on: int | None
    metrics: dict[str, float]
    judgement: dict[str, Any] | None


def evaluate_run(
    run_dir: Path | str, source: Source | None = None, *, progress: Callable[[TrainingProgress], None] | None = None
) -> Evaluation:
    """Evaluate a run's checkpoint in this process, on the users that it held out; nothing is written.

    source: with the columns that the model reads; by default the files that the run was trained on. If more than
    eval_requests requests are held out, one process draws others of them than several ranks did.
    Raises ValueError for a folder without run.json or checkpoint, and for a run that held nobody out.
    """
    run_dir = Path(run_dir)
    config, files, _, trained_on = read_run(run_dir / RUN_NAME)
    state = load_checkpoint(run_dir / CHECKPOINT_NAME)
    if not config.held_out or not config.eval_requests:
        raise ValueError(
            f"{run_dir}: a run with held-out users required, found held_out = {config.held_out} and eval_requests = "
            f"{config.eval_requests}; train with held_out = 0.1"
        )
    alone = replace(config, world_size=1, teacher="")
    run = RankRun(progress or (lambda _: None), alone, source or files, run_dir, trained_on, from_checkpoint=True)
    run.model.load_state_dict(state["model"])
    run.result.steps = run.num_steps = state["step"]
    run.tell("evaluating")
    outcomes = run.evaluate(run.splits.test)
    judgement = judge_run(config, source or files, outcomes, run.rivals(run.splits.test))
    on = trained_on if source is None else snapshot_id_of(source)
    return Evaluation(
        task=config.task,
        step=state["step"],
        snapshot_id=on,
        trained_on=trained_on,
        metrics={} if judgement is None else flat(judgement),
        judgement=judgement,
    )
