"""Variants of models at equal parameters, what a context gives and 8-bit tables cost: synthetic, minutes.

    python -m benchmarks.model_variants [--only conversions|context|int8] [--seeds 2] [--steps 400] [--try]

conversions: recall@100 of purchases, which are 2% of the clicks and follow from whose items (advertiser) a user likes,
while clicks follow from their category: purchases alone, with clicks by their duration, with a loss over advertisers,
with both, with the request's own negatives; then a user head for each label, and cross layers, the hidden layer so wide
that all have as many numbers (tables apart). context: recall@100 of clicks in requests that are about one category,
half of them about none that the user likes: without the context, with it in training and none, another request's or its
own in evaluation, and the same with the context of each positive in training. int8: a DCAT that began with a foundation
model, with its tables of items and events rounded; the error of its logits as a share of their deviation, and the AUC
that it loses. --try: a tenth of it, nothing recorded.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.record import write_results
from reqdedup.convert import ColumnMapping, convert_table
from reqdedup.models import DCATConfig, FoundationConfig, TwoTowerConfig
from reqdedup.models.checkpoint import load_model
from reqdedup.models.inputs import HashedEmbedding
from reqdedup.models.int8_tables import with_int8_tables
from reqdedup.models.registry import build_model
from reqdedup.storage import TableSource, open_catalog
from reqdedup.training import TrainingConfig
from reqdedup.training.judgement.judge import flat, judge
from reqdedup.training.judgement.outcomes import Outcomes, Scored
from reqdedup.training.rank_run import RankRun, run_rank

NUM_ITEMS, NUM_ADVERTISERS, NUM_CATEGORIES, NUM_SUBJECTS, FAN_OUT, REQUESTS = 2_000, 100, 20, 40, 12, 4
BUYS = 0.02
"""Share of the clicks."""
SIZES: dict[str, Any] = {"width": 32, "num_layers": 1, "ffn_width": 64, "max_history": 64, "item_table_rows": 8_192}
BUY, CLICK = ("buy", 1.0, "", 0.0), ("click", 0.2, "dwell_s", 30.0)
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the training, of the model
    "purchases alone": ({"positives": (BUY,)}, {}),
    "with clicks": ({"positives": (BUY, CLICK)}, {}),
    "with advertisers": ({"positives": (BUY,), "coarse_column": "advertiser"}, {}),
    "with both": ({"positives": (BUY, CLICK), "coarse_column": "advertiser"}, {}),
    "with both and own negatives": (
        {"positives": (BUY, CLICK), "coarse_column": "advertiser", "hard_negative_weight": 0.5},
        {},
    ),
    "with clicks, a head each": ({"positives": (BUY, CLICK)}, {"heads": ("buy", "click")}),
    "with both, a head each": (
        {"positives": (BUY, CLICK), "coarse_column": "advertiser"},
        {"heads": ("buy", "click")},
    ),
    "with both, stacked": ({"positives": (BUY, CLICK), "coarse_column": "advertiser"}, {"tower": "stacked"}),
    "with both, parallel": ({"positives": (BUY, CLICK), "coarse_column": "advertiser"}, {"tower": "parallel"}),
}


def log(num_users: int, seed: int) -> pa.Table:
    """Impressions of users who click by category and buy by advertiser; histories are what was clicked before."""
    rng = np.random.default_rng(seed)
    category_V, advertiser_V = (rng.integers(0, n, NUM_ITEMS) for n in (NUM_CATEGORIES, NUM_ADVERTISERS))
    columns: dict[str, list[Any]] = {}
    for user in range(num_users):
        liked, trusted = rng.choice(NUM_CATEGORIES, 3, replace=False), rng.choice(NUM_ADVERTISERS, 8, replace=False)
        history: list[int] = []
        for visit in range(REQUESTS):
            item_B = rng.choice(NUM_ITEMS, FAN_OUT, replace=False)
            wanted = rng.random(NUM_ITEMS) * np.isin(category_V, liked)
            item_B[: FAN_OUT // 2] = np.argsort(-wanted)[: FAN_OUT // 2]  # half is what an earlier model would show
            item_B = np.unique(item_B)
            click_B = rng.random(len(item_B)) < np.where(np.isin(category_V[item_B], liked), 0.5, 0.05)
            is_trusted_B = np.isin(advertiser_V[item_B], trusted)
            buy_B = click_B & (rng.random(len(item_B)) < BUYS * np.where(is_trusted_B, 9.0, 0.2))
            values = {
                "user": [user] * len(item_B),
                "request": [user * REQUESTS + visit] * len(item_B),
                "item": item_B.tolist(),
                "at": [1_700_000_000 + 86_400 * visit + user] * len(item_B),
                "category": category_V[item_B].tolist(),
                "advertiser": advertiser_V[item_B].tolist(),
                "history_item_id": [list(history)] * len(item_B),
                "history_category": [category_V[history].tolist() if history else []] * len(item_B),
                "click": click_B.astype(int).tolist(),
                "buy": buy_B.astype(int).tolist(),
                "dwell_s": (click_B * rng.exponential(10.0, len(item_B)) * (1 + 2 * is_trusted_B)).tolist(),
            }
            for name, value in values.items():
                columns.setdefault(name, []).extend(value)
            history += item_B[click_B].tolist()
    return pa.table(columns)


def log_with_subjects(num_users: int, seed: int) -> pa.Table:
    """Impressions of requests about one category, half of those shown being of it; users click it, and what they like.
    Histories are what was clicked before."""
    rng = np.random.default_rng(seed)
    category_V = rng.integers(0, NUM_SUBJECTS, NUM_ITEMS)
    rows = []
    for user in range(num_users):
        liked = rng.choice(NUM_SUBJECTS, 4, replace=False)
        history: list[int] = []
        for visit in range(REQUESTS):
            subject = rng.choice(liked) if rng.random() < 0.5 else rng.integers(NUM_SUBJECTS)
            of_subject = np.flatnonzero(category_V == subject)
            shown = np.concatenate([rng.choice(of_subject, min(FAN_OUT // 2, len(of_subject)), replace=False),
                                    rng.choice(NUM_ITEMS, FAN_OUT // 2, replace=False)])  # fmt: skip
            item_B = np.unique(shown)
            is_subject_B, is_liked_B = category_V[item_B] == subject, np.isin(category_V[item_B], liked)
            click_B = rng.random(len(item_B)) < np.select([is_subject_B & is_liked_B, is_subject_B, is_liked_B],
                                                          [0.6, 0.3, 0.3], 0.05)  # fmt: skip
            of_request = {
                "user": user,
                "request": user * REQUESTS + visit,
                "at": 1_700_000_000 + 86_400 * visit + user,
                "subject": int(subject),
                "history_item_id": list(history),
                "history_category": category_V[history].tolist() if history else [],
            }
            rows += [
                {**of_request, "item": item, "category": category, "click": int(click)}
                for item, category, click in zip(item_B.tolist(), category_V[item_B].tolist(), click_B, strict=True)
            ]
            history += item_B[click_B].tolist()
    return pa.Table.from_pylist(rows)


def source_of(folder: Path, table: pa.Table, labels: tuple[str, ...] = ("click", "buy")) -> TableSource:
    pq.write_table(table, folder / "log.parquet")
    catalog = open_catalog(properties={"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/lake"})
    mapping = ColumnMapping(user="user", request="request", item="item", time="at", time_unit="s", labels=list(labels))
    convert_table(folder / "log.parquet", catalog, "shop.log", mapping, num_buckets=1)
    return TableSource(catalog.load_table("shop.log"))


def num_numbers(config: TwoTowerConfig) -> int:
    """Of a model, its tables apart."""
    with torch.device("meta"):
        model = build_model(config)
    tables = {id(x.weight) for x in model.modules() if isinstance(x, HashedEmbedding)}
    return sum(x.numel() for x in model.parameters() if id(x) not in tables)


def as_large(config: TwoTowerConfig, wanted: int) -> TwoTowerConfig:
    """The same with a first hidden layer so wide that it has as many numbers, which grow with it linearly."""

    def of_width(width: int) -> TwoTowerConfig:
        return replace(config, hidden_widths=(width, *config.hidden_widths[1:]))

    first, second = num_numbers(of_width(8)), num_numbers(of_width(9))
    return of_width(8 + round((wanted - first) / (second - first)))


def training(model: Any, steps: int, seed: int, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {"num_steps": steps, "max_epochs": 0, "requests_per_step": 128, "learning_rate": 3e-3}
    return TrainingConfig(model=model, world_size=1, seed=seed, held_out=0.25, **{**values, **changes})


def quiet(_: Any) -> None:
    pass


def conversions(folder: Path, num_users: int, steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    plain: TwoTowerConfig | None = None
    for seed in range(seeds):
        place = folder / f"log-{seed}"
        place.mkdir()
        source = source_of(place, log(num_users, seed))
        for name, (of_training, of_model) in ARMS.items():
            sizes = {**SIZES, "output_width": 32, **of_model}
            model = TwoTowerConfig.from_schema(source.schema, exclude=("dwell_s",), **sizes)
            plain = plain or model
            model = as_large(model, num_numbers(plain))
            config = training(model, steps, seed, positive_label="buy", eval_requests=100_000, **of_training)
            result = run_rank(quiet, config, source, str(place / name))
            assert result.outcomes is not None
            figures = flat(judge(result.outcomes, replicates=0))
            yield {
                "claim": f"purchases of held-out users, seed {seed}: recall@100 among {NUM_ITEMS:,} items",
                "variant": name,
                "value": figures["recall_at_100_unseen"],
                "unit": "recall_at_100_unseen",
                "target": None,
                "parameters": num_numbers(model),
                "sizes": {"rows": figures["eval_rows"], "users": num_users, "steps": steps},
            }


def context(folder: Path, num_users: int, steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {"context_categories": (("subject", "", "category"),)}
    for seed in range(seeds):
        place = folder / f"subjects-{seed}"
        place.mkdir()
        source = source_of(place, log_with_subjects(num_users, seed), ("click",))
        found: dict[str, Outcomes] = {}
        for name, of_model in (
            ("without a context", {"exclude": ("subject",)}),
            ("with the logged one", about),
            ("with the positive's", {**about, "context_from": "positive"}),
        ):
            model = TwoTowerConfig.from_schema(source.schema, output_width=32, **SIZES, **of_model)
            result = run_rank(quiet, training(model, steps, seed, eval_requests=100_000), source, str(place / name))
            assert result.outcomes is not None
            found[name] = result.outcomes
            found |= {f"{name}, {rival}": one for rival, one in result.rivals.items()}
        for name, outcomes in found.items():
            figures = flat(judge(outcomes, replicates=0))
            yield {
                "claim": f"clicks of requests about a category, seed {seed}: recall@100 among {NUM_ITEMS:,} items",
                "variant": name,
                "value": figures["recall_at_100"],
                "unit": "recall_at_100",
                "target": None,
                "sizes": {"rows": figures["eval_rows"], "users": num_users, "steps": steps},
            }


def int8(folder: Path, num_users: int, steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    source = source_of(folder, log(num_users, 0))
    begun = FoundationConfig.from_schema(source.schema, **SIZES)
    model = DCATConfig.from_schema(source.schema, labels=("click",), exclude=("dwell_s",), **SIZES)
    for seed in range(seeds):  # one of another seed has read the held-out users
        run_rank(quiet, training(begun, steps, seed), source, str(folder / f"foundation-{seed}"))
        foundation = str(folder / f"foundation-{seed}" / "checkpoint.pt")
        config = training(model, steps, seed, foundation=foundation, eval_requests=100_000)
        place = folder / f"dcat-{seed}"
        run_rank(quiet, config, source, str(place))
        run = RankRun(quiet, config, source, place, None)
        whole = load_model(place / "checkpoint.pt")
        scored, num_bytes = [], []
        for one in (whole, with_int8_tables(copy.deepcopy(whole))):
            run.model = one
            with torch.no_grad():
                found = run.evaluate(run.splits.test)
            assert isinstance(found, Scored)
            scored.append(found)
            num_bytes.append(sum(x.nbytes for name, x in one.state_dict().items() if name.startswith("embedding.")))
        error = (scored[1].logit_BL - scored[0].logit_BL).std() / scored[0].logit_BL.std()
        aucs = [flat(judge(one, replicates=0))["auc_click"] for one in scored]
        for name, value, unit in (
            ("error of a logit", error, "of its standard deviation"),
            ("AUC that is lost", aucs[0] - aucs[1], f"of {aucs[0]:.4f}"),
            ("bytes of the tables", num_bytes[1] / num_bytes[0], "of float32"),
        ):
            yield {
                "claim": f"tables of items and events in 8 bits, seed {seed}",
                "variant": name,
                "value": float(value),
                "unit": unit,
                "target": None,
                "sizes": {"rows": len(scored[0]), "users": num_users, "steps": steps, **SIZES},
            }


PARTS: dict[str, Callable[[Path, int, int, int], Iterator[dict[str, Any]]]] = {
    "conversions": conversions,
    "context": context,
    "int8": int8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--users", type=int, default=6_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--try", dest="is_trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.is_trial:
        options.users, options.steps, options.seeds = 400, 20, 1
    for name in [options.only] if options.only else PARTS:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for row in PARTS[name](Path(folder), options.users, options.steps, options.seeds):
                rows.append(row)
                print(f"{row['claim']}: {row['variant']} {row['value']:.4f} {row['unit']}", flush=True)
        if not options.is_trial:
            print(write_results(f"model_variants_{name}", rows))


if __name__ == "__main__":
    main()
