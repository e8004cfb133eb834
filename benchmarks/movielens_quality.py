"""The library's models beside baselines on MovieLens-100K, each rating its own request.

    python -m benchmarks.movielens_quality ml-100k [--by time|user] [--task ranking|retrieval] [--seeds 4] [--try]
        [--python OTHER/bin/python] [--keep FOLDER]

Every rating is a request whose history is what the user rated in an earlier second: half of the ratings share their
second with the one before, which they do not see. Held out are the last 20% by time, or a fifth of the users; 10% more
are for validation: baselines choose their parameters on it, and of which ratings of histories they are given, the
models' were chosen on it, and everything is then fitted on training and validation together. All get the same
histories, items and ratings, and no genres. Figures of
retrieval leave out items of the history. Intervals are over users, 200 bootstraps. Ranking has kNN on residuals beside
it and, with the --python of an environment that has scikit-learn, a GBM on everything that the others know
(`benchmarks.residual_rivals`). --try: nothing is recorded. --keep: what each seed gave is written into the folder and
taken from there by a later call with the same configuration, so that an interrupted run goes on and more seeds may
follow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import residual_rivals
from benchmarks.record import commit, write_results
from benchmarks.side_by_side import judged_together
from reqdedup.logs import presets, read_log
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.baselines import Ease, ImplicitFactors, ItemNeighbours, LastItem, Popularity
from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.storage import Layout, TableSource, create_table, open_catalog, write
from reqdedup.training import TrainingConfig
from reqdedup.training.judgement.baselines import baselines_of, splits_of
from reqdedup.training.judgement.judge import flat, judge
from reqdedup.training.judgement.outcomes import Outcomes, Ranked, Scored
from reqdedup.training.judgement.retrieval_baselines import retrieval_baselines
from reqdedup.training.rank_run import RankRun, run_rank
from reqdedup.training.split import SplitBy

LONGEST = 1024
"""Above the longest history, so that all requests of a user share one context."""
HELD_OUT, VALIDATION = 0.2, 0.1
CHOSEN_BY = {"ranking": "auc_click", "retrieval": "ndcg_at_10_unseen"}
SHOWN = {"ranking": ("auc_click", "log_loss_click"), "retrieval": ("ndcg_at_10_unseen", "recall_at_100_unseen")}
SIZES: dict[str, Any] = {
    "width": 48,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 96,
    "max_history": LONGEST,
    "item_table_rows": 16_384,
    "positions": "rope",
    "share_context": "user",
}
TRAINING: dict[str, dict[str, Any]] = {
    "ranking": {"learning_rate": 4e-3, "table_learning_rate": 0.08, "hide_events": 0.2, "permute_judgements": True},
    "retrieval": {
        "positives": (("click", 1.0, "", 0.0), ("fair", 1.0, "", 0.0)),
        "learning_rate": 5e-3,
        "table_learning_rate": 0.1,
        "temperature": 0.1,
        "hide_events": 0.1,
        "negatives": "catalogue",
    },
}
EPOCHS = {"ranking": 24, "retrieval": 30}
"""Passes over the ratings; ranking sees them in another order in each."""
LEAST_RATINGS = ("", "fair", "click")
"""Which ratings of histories the baselines are given, by their label: all, of 3 and more, of 4 and more."""
METHODS: dict[str, list[Callable[..., Any]]] = {
    "popularity": [Popularity],
    "last item": [LastItem],
    "item-kNN": [
        partial(ItemNeighbours, neighbours=k, shrinkage=s) for k in (20, 100, 400, 1_600) for s in (0.0, 10.0, 100.0)
    ],
    "EASE": [partial(Ease, l2=l2) for l2 in (100.0, 300.0, 1000.0, 3000.0)],
    "EASE with decay": [
        partial(Ease, l2=l2, decay=decay)
        for l2 in (100.0, 300.0, 1000.0, 3000.0, 6000.0)
        for decay in (0.7, 0.8, 0.9, 0.96)
    ],
    "iALS": [
        partial(ImplicitFactors, factors=f, l2=l2, alpha=a)
        for f in (16, 32, 64)
        for l2 in (0.01, 0.05, 1.0)
        for a in (0.1, 0.3, 1.0, 5.0)
    ],
}


def table(folder: Path, lake: Path) -> TableSource:
    """The log with three labels, so that histories say how good a rating was."""
    mapping = tomllib.loads((Path(presets.__file__).with_name("preset_files") / "movielens_ratings.toml").read_text())
    click = mapping["labels"]["click"]
    mapping["labels"] |= {"fair": {**click, "at_least": 3}, "best": {**click, "at_least": 5}}
    reader = read_log(folder, mapping=mapping, max_history=LONGEST)
    catalog = open_catalog(
        properties={"type": "sql", "uri": f"sqlite:///{lake}/catalog.db", "warehouse": f"file://{lake}"}
    )
    catalog.create_namespace("movielens")
    made = create_table(catalog, "movielens.ratings", reader.schema, Layout.BY_REQUEST, num_buckets=1)
    write(made, reader)
    return TableSource(made)


def configuration(source: TableSource, task: str, by: SplitBy, seed: int, **changes: Any) -> TrainingConfig:
    """Without a validation part: what it held is trained on as well."""
    sizes = {**SIZES, "dropout": 0.1}
    if task == "ranking":
        model: Any = DCATConfig.from_schema(source.schema, labels=("click", "fair", "best"), **sizes)
    else:
        model = TwoTowerConfig.from_schema(source.schema, pooling="last", output_width=64, **sizes)
    values = {**TRAINING[task], "max_epochs": EPOCHS[task], **changes}
    of_model = {name: values.pop(name) for name in list(values) if name in model.__dataclass_fields__}
    return TrainingConfig(
        model=replace(model, **of_model),
        num_steps=100_000,
        requests_per_step=1024,
        warmup_steps=40,
        world_size=1,
        shuffle="users",
        buffer_requests=200_000,
        seed=seed,
        split_by=by,
        held_out=HELD_OUT,
        eval_requests=1_000_000,
        checkpoint_every=1_000_000,
        positive_label="click",
        clip_norm=1.0,
        **values,
    )


def of_model(config: TrainingConfig, source: TableSource, folder: Path) -> Outcomes:
    """The held-out rows of one training."""
    result = run_rank(print if config.validation else lambda _: None, config, source, str(folder))
    assert result.outcomes is not None
    print(f"  {result.steps} steps, {result.training_s:.0f} s, {result.validations}", flush=True)
    return result.outcomes


def tuned(config: TrainingConfig, source: TableSource, folder: Path, test: Ranked) -> dict[str, Outcomes]:
    """Baselines of retrieval with the parameters that do best on the validation part."""
    watched = replace(config, validation=VALIDATION)
    run = RankRun(lambda _: None, watched, source, folder, None)
    with torch.no_grad():
        looked_at = run.evaluate(run.splits.validation)
    assert isinstance(looked_at, Ranked)
    best: dict[str, tuple[float, str, Callable[..., Any]]] = {}
    for least in LEAST_RATINGS:
        # iALS has the largest grid and takes its parameters from all ratings, the others anew
        methods = {
            f"{name} {number}": variant
            for name, variants in METHODS.items()
            for number, variant in enumerate(variants if least == "" or name != "iALS" else [best[name][2]])
        }
        found = retrieval_baselines(watched, source, looked_at, run.splits.train, methods, **given(source, least))
        for numbered, ranked in found.items():
            name = numbered.rpartition(" ")[0]
            candidate = flat(judge(ranked, replicates=0))[CHOSEN_BY["retrieval"]]
            if name not in best or candidate > best[name][0]:
                best[name] = candidate, least, methods[numbered]
    train = splits_of(config, source).train
    fitted: dict[str, Outcomes] = {}
    for name, (_, least, method) in best.items():
        print(f"  {name}: {getattr(method, 'keywords', '')}, ratings: {least or 'all'}", flush=True)
        fitted |= retrieval_baselines(config, source, test, train, {name: method}, **given(source, least))
    return fitted


def given(source: TableSource, least: str) -> dict[str, Any]:
    """What `retrieval_baselines` is told of the ratings with this label; "" for all."""
    names = [label.name for label in source.schema.labels]
    if not least:
        return {}
    values = [value for value in range(2 ** len(names)) if value >> names.index(least) & 1]
    return {"positive_category": "action", "positive_values": values}


def mean_of(seeds: list[Outcomes]) -> Outcomes:
    """Of a ranking model: the mean of the seeds' logits."""
    scored = [one.in_order_of(seeds[0]) for one in seeds if isinstance(one, Scored)]
    return replace(scored[0], logit_BL=np.mean([one.logit_BL for one in scored], axis=0))


def rows_of(task: str, by: str, name: str, model: Outcomes, rivals: Mapping[str, Outcomes]) -> Iterator[dict[str, Any]]:
    judgement = judge(model, rivals)
    gains = {rival: gains_of(model, outcomes) for rival, outcomes in rivals.items()}
    sizes = {name: judgement[name] for name in ("rows", "users")}
    for row in judgement["figures"]:
        if row["metric"] in SHOWN[task] and row["slice"] in ("all", "history under 5"):
            yield {
                "claim": f"MovieLens-100K, {task}, split by {by}, {row['slice']}: {row['metric']}",
                "variant": name,
                "value": row["value"],
                "unit": row["metric"],
                "target": None,
                "spread": [row["low"], row["high"]],
                "baselines": row["baselines"],
                "gain": [row["best_baseline"], row["gain"], row["gain_low"], row["gain_high"]],
                "gain_over": {rival: found[row["metric"], row["slice"]] for rival, found in gains.items()},
                "sizes": sizes,
            }


def gains_of(model: Outcomes, rival: Outcomes) -> dict[tuple[str, str], list[float | None]]:
    """What the model is better by than this rival, with its interval, by metric and slice."""
    figures = judge(model, {"rival": rival})["figures"]
    return {(row["metric"], row["slice"]): [row["gain"], row["gain_low"], row["gain_high"]] for row in figures}


def rivals_of(
    config: TrainingConfig, source: TableSource, lake: Path, model: Outcomes, python: Path | None
) -> dict[str, Outcomes]:
    if isinstance(model, Ranked):
        return tuned(config, source, lake / "tuning", model)
    assert isinstance(model, Scored)
    train = splits_of(config, source).train
    return baselines_of(config, source, model) | residual_rivals.rivals(source, model, train, python)


def measure(
    source: TableSource, task: str, by: SplitBy, seeds: int, lake: Path, python: Path | None, keep: Path | None = None
) -> Iterator[dict[str, Any]]:
    found: list[Outcomes] = []
    folders: list[Path] = []
    rivals: dict[str, Outcomes] = {}
    for seed in range(seeds):
        config = configuration(source, task, by, seed)
        name = f"{task}-{by}-{seed}-{key(config.to_dict())}"
        folders.append((keep or lake) / name)
        if keep and (task, by) == ("retrieval", "time") and not (folders[-1] / CHECKPOINT_NAME).exists():
            (keep / f"{name}.pickle").unlink(missing_ok=True)  # the weights are asked for as well
        model_commit, outcomes = kept(keep and keep / f"{name}.pickle", partial(of_model, config, source, folders[-1]))
        if not seed or by == "user":  # each seed has its own users
            place = keep and keep / f"{task}-{by}-{seed}-rivals-{RIVALS_KEY}.pickle"
            _, rivals = kept(place, partial(rivals_of, config, source, lake, outcomes, python))
        found.append(outcomes)
        for row in rows_of(task, by, f"seed {seed}", outcomes, rivals):
            yield {**row, "model_commit": model_commit}
    if seeds > 1 and by == "time":  # by user each seed has its own users
        if task == "ranking":
            together = mean_of(found)
        else:
            together = judged_together(config, source, folders).in_order_of(found[0])
        yield from rows_of(task, by, f"mean of {seeds} seeds", together, rivals)


def key(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:8]


RIVALS_KEY = key([METHODS, LEAST_RATINGS, HELD_OUT, VALIDATION, LONGEST])
"""Of what rivals follow from, beside the split; the model has no part in it."""


def kept(path: Path | None, made: Callable[[], Any]) -> tuple[str, Any]:
    """(commit that made it, what the file holds); without a file, what is made, which the file then holds."""
    if path and path.exists():
        return pickle.loads(path.read_bytes())
    value = commit(), made()
    if path:
        path.write_bytes(pickle.dumps(value))
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", choices=("time", "user"), action="append")
    parser.add_argument("--task", choices=tuple(TRAINING), action="append")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--python", type=Path, help="of an environment with scikit-learn, for the GBM")
    parser.add_argument("--keep", type=Path, help="folder of what each seed gave; an interrupted run goes on")
    parser.add_argument("--epochs", type=int, help="instead of the protocol's, for a trial")
    parser.add_argument("--try", dest="is_trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    if options.epochs:
        EPOCHS.update(dict.fromkeys(EPOCHS, options.epochs))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = table(options.folder, Path(folder))
        for task in options.task or TRAINING:
            for by in options.by or ("time", "user"):
                for row in measure(source, task, by, options.seeds, Path(folder), options.python, options.keep):
                    rows.append(row)
                    low, high = row["spread"]
                    print(f"{row['claim']}: {row['variant']} {row['unit']} {row['value']:.4f} ({low} to {high})")
                    print(f"  {row['baselines']}\n  gain {row['gain']}", flush=True)
    if not options.is_trial:
        measured = {row["claim"].rpartition(", ")[0] for row in rows}
        print(write_results("movielens_quality", rows, replaced=tuple(f"{claim}, " for claim in measured)))


if __name__ == "__main__":
    main()
