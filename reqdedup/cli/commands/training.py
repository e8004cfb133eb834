"""`reqdedup train` and `reqdedup evaluate`: a model from one table, and its figures on users that it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reqdedup.cli.catalog import load_table, open_catalog
from reqdedup.cli.options import NUMBER, POSITIVE, Checked, OneOf, Options, option, subcommand
from reqdedup.cli.output import ProgressLine, counted, format_bytes, format_table, interruptible, note, print_json, say
from reqdedup.cli.values import MOST_SEED, whole
from reqdedup.schema import Level

if TYPE_CHECKING:
    from reqdedup.training import TrainingConfig
    from reqdedup.training.plan import Source

OF_RUN = {
    "steps": "num_steps",
    "ranks": "world_size",
    **{name: name for name in ("requests_per_step", "learning_rate", "seed", "device", "precision", "positive_label")},
}
OF_MODEL = {"layers": "num_layers", **{name: name for name in ("labels", "exclude", "width", "max_history")}}
"""Options, and the fields of TrainingConfig and of the model's configuration that they set."""


@subcommand(
    help="train a ranking or retrieval model on a table",
    description="TABLE goes to the model as it lies: each request's history is read, moved and encoded once. The model "
    "takes every column that it can use. --out becomes a run: run.json with the complete configuration, metrics.csv "
    "with a line per step, checkpoint.pt, result.json with figures on held-out users, and the bundle that a server "
    "loads. --config names a TOML or JSON file with the fields of TrainingConfig and, under `model`, of the model; "
    "options here go over it. See docs/training.md.",
    examples=[
        "reqdedup train movies.engagements --task ranking --out runs/ranking --label click --steps 2000",
        "reqdedup train movies.engagements --task retrieval --out runs/retrieval --config retrieval.toml",
        "reqdedup train movies.engagements --out runs/ranking --resume",
    ],
)
@click.argument("table", metavar="NAMESPACE.NAME")
@option("--task", type=OneOf(("ranking", "retrieval", "pretraining")), help="needed unless --resume is given")
@option("--out", required=True, metavar="DIR", help="folder of the run, new or empty")
@option(
    "--resume", is_flag=True, help="go on from the checkpoint in DIR, with the configuration and files in its run.json"
)
@option("--replace", is_flag=True, help="train anew where DIR holds a run, which stays until the new one has ended")
@option("--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML, or JSON if it ends with .json")
@option("--steps", type=POSITIVE, metavar="N", help="optimiser steps (default: 1000)")
@option("--requests-per-step", type=POSITIVE, metavar="N", help="over all ranks (default: 256)")
@option("--learning-rate", type=NUMBER, metavar="X", help="at its highest (default: 0.003)")
@option("--ranks", type=Checked(whole, most=1024), metavar="N", help="processes on this machine (default: 2)")
@option("--device", type=OneOf(("cpu", "cuda")), help="cpu (default), or a GPU for each rank")
@option("--precision", type=OneOf(("float32", "bfloat16")), help="of matrix products (default: float32)")
@option(
    "--seed", type=Checked(whole, least=0, most=MOST_SEED), metavar="N", help="of weights, order and held-out users"
)
@option("--label", "labels", variadic=True, metavar="NAME...", help="ranking: what to predict (default: all labels)")
@option("--positive-label", metavar="NAME", help="retrieval: learn from the rows where it is positive")
@option("--exclude", variadic=True, metavar="COLUMN...", help="columns that are no inputs")
@option("--max-history", type=POSITIVE, metavar="EVENTS", help="longest history (default: 512)")
@option("--width", type=POSITIVE, metavar="N", help="of the transformer (default: 64)")
@option("--layers", type=POSITIVE, metavar="N", help="of the transformer (default: 2)")
def train(arguments: Options) -> int:
    """Train, then say what came out."""
    from reqdedup import training
    from reqdedup.training.loop import CHECKPOINT_NAME, RUN_NAME, read_run, resumed_folder

    out = Path(arguments.out)
    checkpoint = resumed_folder(out) / CHECKPOINT_NAME
    snapshot_id = None
    source: Source
    if arguments.resume:
        said = [name for name in ("task", "config", *OF_RUN, *OF_MODEL) if getattr(arguments, name) not in (None, ())]
        if said:
            raise ValueError(f"--resume takes the configuration of {out / RUN_NAME}: leave out {_options(said)}")
        config, source, _, snapshot_id = read_run(checkpoint.with_name(RUN_NAME))
        if not checkpoint.exists():
            raise ValueError(f"{checkpoint}: a checkpoint to resume from required, found none; train without --resume")
    else:
        if not arguments.task:
            raise ValueError("--task ranking, retrieval or pretraining required, found none")
        if checkpoint.exists() and not arguments.replace:
            raise ValueError(
                f"--out: a folder without a run required, found one in {out}; --resume goes on with it, --replace "
                "trains anew"
            )
        from reqdedup.storage import TableSource

        source = TableSource(load_table(open_catalog(arguments), arguments.table))
        config = _configuration(arguments, source)
    saved = _time_of(checkpoint)
    inputs = ", ".join(config.model.columns)
    others = [one.name for one in source.schema.at(Level.REQUEST, Level.ITEM) if one.name not in config.model.columns]
    left_out = f"; left out: {', '.join(others)}" if others else ""
    note(f"{arguments.table}: {config.task} on {counted(config.world_size, 'rank')}, inputs {inputs}{left_out}")
    with ProgressLine() as progress, interruptible(lambda: _kept(out, saved)):
        try:
            result = training.train(
                config, source, out_dir=out, progress=progress, resume=arguments.resume, snapshot_id=snapshot_id
            )
        except training.RankError as error:
            if "Traceback" in str(error):
                raise
            raise ValueError(f"{error}\n{_kept(out, saved)}") from error
    if arguments.json:
        print_json(
            {
                "table": arguments.table,
                "out": str(out),
                "task": config.task,
                "steps": result.steps,
                "epochs": result.epochs,
                "stopped_by": result.stopped_by,
                "best_step": result.best_step,
                "rows": result.rows,
                "first_loss": result.first_loss,
                "last_loss": result.last_loss,
                "rows_per_s": result.rows_per_s,
                "peak_memory_bytes": result.peak_memory_bytes,
                "mean_wait_s": result.mean_wait_s,
                "longest_wait_s": result.longest_wait_s,
                "mean_core_busy": result.mean_core_busy,
                "busiest_core_busy": result.busiest_core_busy,
                "metrics": result.metrics,
                "judgement": result.judgement,
            }
        )
        return 0
    say(
        f"{out}: {config.task}, {result.steps:,} steps of {arguments.table} in {result.training_s:.1f} s, "
        f"{result.rows_per_s:,.0f} rows/s, {format_bytes(result.peak_memory_bytes)} at most in a rank"
    )
    say(
        f"  waited for the slowest rank {result.longest_wait_s:.1f} s at most, {result.mean_wait_s:.1f} s on average; "
        f"the busiest core {result.busiest_core_busy:.0%} busy, all {result.mean_core_busy:.0%}"
    )
    if result.stopped_by == "epochs":
        say(
            f"  ended by max_epochs = {config.max_epochs}, {config.num_steps:,} steps were asked for; 0 lifts the limit"
        )
    elif result.stopped_by == "patience":
        say(f"  ended by patience = {config.patience}: the weights of step {result.best_step:,} were the best")
    say(f"  loss {result.first_loss:.4f} in the first tenth of the steps, {result.last_loss:.4f} in the last")
    say(_figures(result.judgement))
    say(f"  {_what_next(config, out)}")
    return 0


@subcommand(
    help="the figures of a training run on the users that it held out",
    description="RUN_DIR is the --out of a training, finished or stopped. Its checkpoint is evaluated on the held-out "
    "users of the files that it was trained on, or with --table on a table as it is now, beside chance and the "
    "baselines that a team would try first, with intervals over users. Nothing is written.",
    examples=[
        "reqdedup evaluate runs/ranking",
        "reqdedup evaluate runs/ranking --table movies.engagements --json",
    ],
)
@click.argument("run_dir", metavar="RUN_DIR")
@option("--table", metavar="NAMESPACE.NAME", help="with the columns of the run's table (default: the run's own files)")
def evaluate(arguments: Options) -> int:
    """Print the held-out figures, each beside chance and baselines."""
    from reqdedup.storage import TableSource
    from reqdedup.training import evaluate_run

    source = TableSource(load_table(open_catalog(arguments), arguments.table)) if arguments.table else None
    with ProgressLine() as progress:
        found = evaluate_run(arguments.run_dir, source, progress=progress)
    if arguments.json:
        print_json({"run": arguments.run_dir, "table": arguments.table, **vars(found)})
        return 0
    on = arguments.table or "the files that it was trained on"
    say(f"{arguments.run_dir}: {found.task} at step {found.step:,}, on {on} (snapshot {found.snapshot_id})")
    if found.snapshot_id != found.trained_on:
        say(f"  trained on snapshot {found.trained_on}")
    say(_figures(found.judgement))
    return 0


COMMANDS = (train, evaluate)


def _configuration(arguments: Options, source: Any) -> TrainingConfig:
    """The file's values with those of the options over them."""
    from reqdedup.training.written import config_for, read_values

    values = read_values(arguments.config) if arguments.config else {}
    model = dict(values.pop("model", {}))
    for option_name, name in OF_RUN.items():
        if getattr(arguments, option_name) is not None:
            values[name] = getattr(arguments, option_name)
    for option_name, name in OF_MODEL.items():
        if getattr(arguments, option_name):
            model[name] = getattr(arguments, option_name)
    wrong = "positive_label" if arguments.task == "ranking" else "labels"
    if getattr(arguments, wrong):
        right = "--label" if wrong == "positive_label" else "--positive-label"
        raise ValueError(f"{_options([wrong])} is for another task than {arguments.task}; name {right}")
    said_in = str(arguments.config) if arguments.config else "options"
    return config_for(arguments.task, source.schema, {**values, "model": model}, said_in=said_in)


def _what_next(config: TrainingConfig, out: Path) -> str:
    """What the run is for."""
    from reqdedup.models.registry import name_of

    if config.task == "pretraining":
        begins = json.dumps(str(out / "checkpoint.pt"))
        return (
            f"it is no model to serve: a ranking or retrieval model begins with it, foundation = {begins} in --config"
        )
    bundle = out / "bundle"
    if name_of(config.model) == "early_ranker":
        place = json.dumps(str(bundle))
        return f"a server takes it as the first of two ranking stages: [light] bundle = {place} in --funnel"
    return f"a server loads {bundle}: `reqdedup serve {bundle}`"


def _options(names: list[str]) -> str:
    return ", ".join("--" + {"labels": "label"}.get(name, name).replace("_", "-") for name in names)


def _kept(out: Path, saved: int | None) -> str:
    """What is in the folder of a run that did not end. saved: time of the checkpoint before it [ns]."""
    from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint
    from reqdedup.training.loop import METRICS_NAME, resumed_folder

    checkpoint = resumed_folder(out) / CHECKPOINT_NAME
    if not checkpoint.exists():
        has_steps = (out / METRICS_NAME).exists()
        found = f"{out} has metrics of the steps alone" if has_steps else "no step was taken"
        return f"no checkpoint was written yet, {found}; train again"
    step = load_checkpoint(checkpoint)["step"]
    if _time_of(checkpoint) == saved:
        return f"no new checkpoint was written; that of step {step:,} in {checkpoint} is as it was"
    replaces = "" if checkpoint.parent == out else f"; the run in {out} is as it was"
    return f"the checkpoint of step {step:,} is kept in {checkpoint}; --resume goes on there{replaces}"


def _time_of(path: Path) -> int | None:
    """When a file was last written [ns]; None if there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _figures(judgement: dict[str, Any] | None) -> str:
    """Each figure with its interval, beside chance and the best baseline; then the main ones of every slice, and
    whether the model is any better."""
    from reqdedup.training.report import verdict

    if judgement is None:
        return "  no users were held out"
    rows = judgement["figures"]
    table = [_cells(row, row["metric"]) for row in rows if row["slice"] == "all"]
    slices = [
        _cells(row, f"{row['slice']}: {row['metric']}")
        for row in rows
        if row["slice"] != "all" and row["metric"].startswith(_OF_SLICES) and not row["metric"].endswith("_unseen")
    ]
    name = f"held out: {counted(judgement['users'], 'user')}, {counted(judgement['rows'], 'row')}"
    head = [name, "value", "95%", "chance", "best baseline", ""]
    return f"{format_table(head, [*table, *slices])}\n  {verdict(judgement)}"


_OF_SLICES = ("auc_", "mean_log_rank", "recall_at_10")


def _cells(row: dict[str, Any], name: str) -> list[str]:
    spread = "-" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
    best = row["best_baseline"]
    return [name, _shown(row["value"]), spread, _shown(row["chance"]), _shown(row["baselines"].get(best)), best or ""]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
