"""What a retrieval model knows of an item when it is judged is what a server will know of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup.models import TwoTowerConfig
from reqdedup.training import TrainingConfig
from reqdedup.training.export import read_items
from reqdedup.training.rank_run import RankRun
from tests.training.logs import SCHEMA, random_log, with_signal

SIZES = {"width": 8, "output_width": 8, "num_layers": 1, "item_table_rows": 64, "category_table_rows": 16}


@pytest.fixture(scope="module")
def log():
    return with_signal(random_log(num_groups=4, requests_per_group=20, seed=2))


@pytest.fixture
def run(log, tmp_path):
    model = TwoTowerConfig.from_schema(SCHEMA, **SIZES)
    config = TrainingConfig(
        model=model, num_steps=1, requests_per_step=8, learning_rate=0.01, world_size=1, positive_label=None
    )
    with pytest.warns(UserWarning, match=r"one value of each item, and is_new, price differ .* \(exclude\)"):
        return RankRun(lambda _: None, config, log, tmp_path, None)


def test_items_are_judged_and_served_with_their_earliest_row(log, run):
    earliest = {}
    for row in (row for group in log.groups for row in group.select(["item_id", "request_ts", "price"]).to_pylist()):
        if row["item_id"] not in earliest or row["request_ts"] < earliest[row["item_id"]]["request_ts"]:
            earliest[row["item_id"]] = row
    judged, served = run.task.counts, read_items(log, run.config.model, impressions_too=True)
    assert judged.item_id_V.tolist() == served.item_id_V.tolist() == sorted(earliest)
    for name in run.config.model.item_columns:
        np.testing.assert_array_equal(judged.columns[name], served.columns[name])
    prices = [earliest[item]["price"] for item in sorted(earliest)]
    np.testing.assert_allclose(served.columns["price"], [np.nan if x is None else x for x in prices], rtol=1e-6)


def test_what_an_impression_says_of_its_item_changes_no_rank(run):
    batch = next(iter(run.loader))
    other = replace(
        batch, row={**batch.row, "price": batch.row["price"].flip(0) + 3, "is_new": batch.row["is_new"] * 0}
    )
    model = run.model.eval()
    with torch.no_grad():
        assert not torch.equal(model(batch)[1], model(other)[1])
        found, same = (run.task.evaluate(model, [one]) for one in (batch, other))
    assert found.rank_B.tolist() == same.rank_B.tolist()
