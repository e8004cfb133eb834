"""What the order of a history is worth, and what histories teach before there are labels: synthetic, minutes.

    python -m benchmarks.model_order [--only order|labels] [--seeds 3] [--users 3000] [--try]

The log has moods (`SyntheticLogConfig.mood_days`): each user has two tastes that take turns, so that the newest events
say which one holds, and the set of all events does not.

order: AUC of a click of held-out users, by a DCAT, by an early ranker, and by the same early ranker with the mean of
its events' embeddings in place of its transformer: a bag of items. labels: AUC by a DCAT that learns from a tenth of
the training users, from random weights, and from a foundation model that has read the histories of all training
users and no label; the same held-out users. Intervals are over users, of the gain. --try: a tenth of it, nothing
recorded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.model_variants import quiet
from benchmarks.record import write_results
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCATConfig, EarlyRankerConfig, FoundationConfig
from reqdedup.storage import Layout, TableSource, create_table, open_catalog, write
from reqdedup.training import TrainingConfig
from reqdedup.training.judgement.judge import judge
from reqdedup.training.judgement.outcomes import Outcomes
from reqdedup.training.rank_run import RankRun

MOOD_DAYS, HISTORY = 60.0, 128
SIZES: dict[str, Any] = {
    "width": 32,
    "num_layers": 2,
    "ffn_width": 64,
    "max_history": HISTORY,
    "item_table_rows": 16_384,
    "positions": "rope",
    "share_context": "user",
}
HELD_OUT, LABELLED = 0.25, 0.1
"""Share of the users, and of those that are not held out, whose labels are learned from."""
MODELS: dict[str, tuple[type[DCATConfig] | type[EarlyRankerConfig], dict[str, Any]]] = {
    "bag of items": (EarlyRankerConfig, {}),
    "early ranker": (EarlyRankerConfig, {"pooling": "both"}),
    "DCAT": (DCATConfig, {}),
}


class Bag(nn.Module):
    """In place of a transformer over histories: events as they were embedded."""

    def forward(self, x_TD: torch.Tensor, offsets_G1: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        return x_TD, []


def source_of(folder: Path, num_users: int, seed: int) -> TableSource:
    log = SyntheticLogConfig(
        seed=seed,
        num_users=num_users,
        num_items=1_000,
        mean_fan_out=60,
        max_fan_out=128,
        history_scale=0.02,
        max_history=HISTORY,
        mood_days=MOOD_DAYS,
    )
    catalog = open_catalog(properties={"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/lake"})
    catalog.create_namespace("moods")
    table = create_table(catalog, "moods.log", synthetic_schema(log), Layout.BY_REQUEST, num_buckets=1)
    write(table, synthesize(log))
    return TableSource(table)


def training(model: Any, seed: int, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "num_steps": 100_000,
        "requests_per_step": 128,
        "learning_rate": 3e-3,
        "max_epochs": 4,
        "shuffle": "users",
        "buffer_requests": 100_000,
        "held_out": HELD_OUT,
        "eval_requests": 100_000,
        "validate_every": 1_000_000,
        "checkpoint_every": 1_000_000,
        **changes,
    }
    return TrainingConfig(model=model, world_size=1, seed=seed, **values)


def outcomes_of(config: TrainingConfig, source: TableSource, folder: Path, *, is_bag: bool = False) -> Outcomes:
    """The held-out rows of one training."""
    run = RankRun(quiet, config, source, folder, None)
    if is_bag:
        run.model.get_submodule("towers").transformer = Bag()
    found = run.run(False).outcomes
    assert found is not None
    return found


def rows_of(claim: str, arms: dict[str, Outcomes], sizes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """AUC of each arm; the first one's rivals are all others."""
    for name, outcomes in arms.items():
        rivals = {other: found for other, found in arms.items() if other != name}
        found = judge(outcomes, rivals)
        (row,) = [row for row in found["figures"] if (row["metric"], row["slice"]) == ("auc_click", "all")]
        yield {
            "claim": claim,
            "variant": name,
            "value": row["value"],
            "unit": "auc_click",
            "target": None,
            "spread": [row["low"], row["high"]],
            "gain": [row["best_baseline"], row["gain"], row["gain_low"], row["gain_high"]],
            "sizes": {"rows": found["rows"], "users": found["users"], **sizes},
        }


def order(folder: Path, num_users: int, seed: int) -> Iterator[dict[str, Any]]:
    source, arms = source_of(folder, num_users, seed), {}
    for name, (kind, changes) in MODELS.items():
        model = kind.from_schema(source.schema, labels=("click",), **SIZES, **changes)
        arms[name] = outcomes_of(training(model, seed), source, folder / name, is_bag=name == "bag of items")
    yield from rows_of(f"a log whose order says what is liked now, seed {seed}: AUC", arms, {"users": num_users})


def labels(folder: Path, num_users: int, seed: int) -> Iterator[dict[str, Any]]:
    source = source_of(folder, num_users, seed)
    begun = FoundationConfig.from_schema(source.schema, **SIZES)
    RankRun(quiet, training(begun, seed, max_epochs=3), source, folder / "begun", None).run(False)
    model = DCATConfig.from_schema(source.schema, labels=("click",), **SIZES)
    few = {"validation": 1 - HELD_OUT - LABELLED * (1 - HELD_OUT), "max_epochs": 4, "requests_per_step": 32}
    arms = {}
    taken: dict[str, Any] = {"foundation": str(folder / "begun" / "checkpoint.pt")}
    ways: dict[str, dict[str, Any]] = {
        "from scratch": {},
        "foundation": taken,
        "foundation, its part at a tenth of the rate": {
            **taken,
            "rate_factors": {"transformer": 0.1, "embedding": 0.1},
        },
    }
    for name, changes in ways.items():
        arms[name] = outcomes_of(training(model, seed, **few, **changes), source, folder / name)
    yield from rows_of(f"labels of a tenth of the users, seed {seed}: AUC", arms, {"users": num_users})


PARTS: dict[str, Callable[[Path, int, int], Iterator[dict[str, Any]]]] = {"order": order, "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--users", type=int, default=3_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--try", dest="is_trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.is_trial:
        options.users, options.seeds = options.users // 10, 1
    for name in [options.only] if options.only else PARTS:
        rows = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                for row in PARTS[name](Path(folder), options.users, seed):
                    rows.append(row)
                    print(f"{row['claim']}: {row['variant']} {row['value']:.4f}, gain {row['gain']}", flush=True)
        if not options.is_trial:
            print(write_results(f"model_order_{name}", rows))


if __name__ == "__main__":
    main()
