"""Popularity and item mean on a run's held-out users, beside plain loops over the rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.training import TrainingConfig
from reqdedup.training.plan import UserSplit
from reqdedup.training.simple_baselines import PRIOR_ROWS, no_better, simple_baseline

LOG = SyntheticLogConfig(seed=5, num_users=40, num_items=40, mean_fan_out=8, max_fan_out=16, max_history=8)


@pytest.fixture
def source(catalog) -> TableSource:
    catalog.create_namespace("small")
    table = create_table(catalog, "small.t", synthetic_schema(LOG), Layout.BY_REQUEST, num_buckets=2)
    write(table, synthesize(LOG))
    return TableSource(table)


def run_of(model, tmp_path) -> TrainingConfig:
    """A run's folder, as far as a baseline reads it."""
    positive = "click" if isinstance(model, TwoTowerConfig) else None
    steps = {"num_steps": 1, "requests_per_step": 4, "learning_rate": 0.1}
    config = TrainingConfig(model=model, held_out=0.3, positive_label=positive, **steps)
    torch.save({"config": config.to_dict(), "format": 1, "model": {}, "step": 1}, tmp_path / "checkpoint.pt")
    return config


def split(source, config) -> tuple[list[dict], list[dict]]:
    rows = source.to_arrow(["user_id", "request_id", "item_id", "click", "save"]).to_pylist()
    held = UserSplit(held_out=config.held_out, part="eval", seed=config.seed)
    is_held = held.contains(np.array([row["user_id"] for row in rows]))
    return [row for row, out in zip(rows, is_held) if not out], [row for row, out in zip(rows, is_held) if out]


@pytest.mark.slow
def test_popularity_ranks_by_the_positives_of_training_users(source, tmp_path):
    config = run_of(TwoTowerConfig.from_schema(source.schema, width=8, num_layers=1, max_history=8), tmp_path)
    train, held = split(source, config)
    count = Counter(row["item_id"] for row in train if row["click"] == 1)
    items = {row["item_id"] for row in train + held}
    ranks = []
    for row in held:
        if row["click"] == 1:
            others = [count[item] for item in items if item != row["item_id"]]
            mine = count[row["item_id"]]
            ranks.append(1 + sum(other > mine for other in others) + sum(other == mine for other in others) / 2)
    found = simple_baseline(tmp_path, source)
    assert found["mean_log_rank"] == pytest.approx(np.mean(np.log(ranks)))
    assert found["recall_at_10"] == pytest.approx(np.mean(np.array(ranks) <= 10))


@pytest.mark.slow
def test_item_means_are_those_of_training_users(source, tmp_path):
    config = run_of(DCATConfig.from_schema(source.schema, width=8, num_layers=1, max_history=8), tmp_path)
    train, held = split(source, config)
    mean = sum(row["click"] for row in train) / len(train)
    of_item = defaultdict(list)
    for row in train:
        of_item[row["item_id"]].append(row["click"])
    predicted = [
        (sum(of_item[row["item_id"]]) + PRIOR_ROWS * mean) / (len(of_item[row["item_id"]]) + PRIOR_ROWS) for row in held
    ]
    positive = [p for p, row in zip(predicted, held) if row["click"]]
    negative = [p for p, row in zip(predicted, held) if not row["click"]]
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    found = simple_baseline(tmp_path, source)
    assert found["auc_click"] == pytest.approx(np.mean(pairs))
    loss = [-math.log(p if row["click"] else 1 - p) for p, row in zip(predicted, held)]
    assert found["log_loss_click"] == pytest.approx(np.mean(loss))


def test_a_model_that_is_no_better_is_named_with_what_is_as_good():
    def row(model: str, metric: str, value: float, chance: float, rule: float) -> dict:
        return {"model": model, "metric": metric, "value": value, "chance": chance, "simple_rule": rule}

    nan = math.nan
    rows = [
        row("retrieval_model", "mean_log_rank", 5.0, 6.0, 4.9),
        row("retrieval_model", "recall_at_10", 0.0, 0.1, 0.2),
        row("ranking_model", "auc_click", 0.6, 0.5, 0.55),
        row("ranking_model", "auc_save", 0.49, 0.5, 0.45),
        row("ranking_model", "auc_like", nan, 0.5, nan),
    ]
    assert no_better(rows) == [
        "retrieval_model: mean_log_rank 5, popularity 4.9",
        "ranking_model: auc_save 0.49, chance 0.5",
    ]
