"""A run's baselines on its held-out rows, beside plain loops over the rows of the table."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyiceberg.catalog import load_catalog

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.baselines import Histories
from reqdedup.models.baselines.means import PRIOR_ROWS, USER_PRIOR_ROWS
from reqdedup.storage import Layout, TableSource, create_table, write
from reqdedup.training import TrainingConfig
from reqdedup.training.judgement.baselines import baselines_of, splits_of
from reqdedup.training.judgement.judge import flat, judge
from reqdedup.training.judgement.retrieval_baselines import (
    MOST_USERS,
    _items,
    _sequences,
    fitted_users,
    retrieval_baselines,
)
from reqdedup.training.loader import RequestLoader
from reqdedup.training.rank_run import RankRun
from reqdedup.training.split import Splits
from tests.models.batches import random_batch

pytestmark = pytest.mark.slow

LOG = SyntheticLogConfig(seed=5, num_users=40, num_items=40, mean_fan_out=8, max_fan_out=16, max_history=8)
SIZES = {"width": 8, "num_layers": 1, "max_history": 8, "item_table_rows": 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> TableSource:
    folder = tmp_path_factory.mktemp("lake")
    catalog = load_catalog("small", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace("small")
    table = create_table(catalog, "small.t", synthetic_schema(LOG), Layout.BY_REQUEST, num_buckets=2)
    write(table, synthesize(LOG))
    return TableSource(table)


def configuration(model, by: str, label_maturity_s=()) -> TrainingConfig:
    positive = "click" if isinstance(model, TwoTowerConfig) else None
    return TrainingConfig(
        model=model,
        held_out=0.3,
        split_by=by,
        positive_label=positive,
        num_steps=1,
        requests_per_step=4,
        learning_rate=0.1,
        world_size=1,
        label_maturity_s=dict(label_maturity_s),
    )


def judged(source, model, by, tmp_path, label_maturity_s=()):
    """(outcomes of an untrained model, baselines, training rows, held-out rows)."""
    config = configuration(model, by, label_maturity_s)
    run = RankRun(lambda _: None, config, source, tmp_path, None)
    with torch.no_grad():
        outcomes = run.evaluate(run.splits.test)
    rows = source.to_arrow(["user_id", "request_id", "request_ts", "item_id", "click", "save"]).to_pylist()
    test = splits_of(config, source).test
    times = np.array([round(row["request_ts"].timestamp() * 1e6) for row in rows])
    is_held = test.contains(np.array([row["user_id"] for row in rows]), times)
    for row, time in zip(rows, times.tolist()):
        row["ts"] = time
        if label_maturity_s and times.max() - time < 1e6 * label_maturity_s["click"]:
            row["click"] = None
    train, held = ([row for row, out in zip(rows, is_held) if out == held] for held in (False, True))
    return outcomes, baselines_of(config, source, outcomes), train, held


@pytest.mark.parametrize(("by", "maturity_s"), [("user", 0), ("time", 0), ("user", 4 * 86400)])
def test_item_and_user_means_know_the_training_rows_and_the_users_earlier_ones(source, tmp_path, by, maturity_s):
    model = DCATConfig.from_schema(source.schema, labels=("click",), **SIZES)
    window = {"click": maturity_s} if maturity_s else {}
    outcomes, baselines, train, held = judged(source, model, by, tmp_path, window)
    known = [row for row in train if row["click"] is not None]
    assert len(known) > 0
    assert (len(known) < len(train)) == bool(maturity_s)
    mean = sum(row["click"] for row in known) / len(known)
    of_item = defaultdict(list)
    for row in known:
        of_item[row["item_id"]].append(row["click"])

    def base_of(item: int) -> float:
        return (sum(of_item[item]) + PRIOR_ROWS * mean) / (len(of_item[item]) + PRIOR_ROWS)

    base = {row["item_id"]: base_of(row["item_id"]) for row in train + held}
    wanted = {}
    for row in held:
        earlier = [r for r in train + held if r["user_id"] == row["user_id"] and r["ts"] < row["ts"]]
        earlier = [r for r in earlier if r["click"] is not None]
        own = sum(r["click"] - base[r["item_id"]] for r in earlier) / (len(earlier) + USER_PRIOR_ROWS)
        key = row["user_id"], row["request_id"], row["item_id"]
        wanted[key] = base[row["item_id"]], base[row["item_id"]] + own, np.nan if row["click"] is None else row["click"]
    keys = list(zip(outcomes.user_id_B.tolist(), outcomes.request_id_B.tolist(), outcomes.item_id_B.tolist()))
    assert len(keys) == len(held)
    assert np.array_equal(outcomes.label_BL[:, 0], [wanted[key][2] for key in keys], equal_nan=True)
    for name, place in (("item mean", 0), ("item + user mean", 1)):
        predicted = np.array([wanted[key][place] for key in keys])
        inside = predicted.clip(0.01, 0.99)
        logits = np.log(inside / (1 - inside)) + (predicted - inside) / (0.01 * 0.99)
        assert baselines[name].logit_BL[:, 0] == pytest.approx(logits)
    figures = flat(judge(outcomes, baselines, replicates=10))
    assert figures["auc_click_chance"] == 0.5
    assert figures["eval_rows"] == len(held)


@pytest.mark.parametrize("by", ["user", "time"])
def test_popularity_and_neighbours_rank_by_what_training_users_engaged_with(source, tmp_path, by):
    model = TwoTowerConfig.from_schema(source.schema, output_width=4, **SIZES)
    outcomes, baselines, train, held = judged(source, model, by, tmp_path)
    count = Counter(row["item_id"] for row in train if row["click"] == 1)
    items = sorted({row["item_id"] for row in train + held})
    history = histories(source)
    positives = [row for row in held if row["click"] == 1]
    key = [(row["user_id"], row["request_id"], row["item_id"]) for row in positives]
    found = list(zip(outcomes.user_id_B.tolist(), outcomes.request_id_B.tolist(), outcomes.item_id_B.tolist()))
    assert sorted(found) == sorted(key)
    ranks, unseen = [], []
    for user, request, item in found:
        seen = set(history[user, request])
        for kept, said in ((set(), ranks), (seen, unseen)):
            rivals = [count[other] for other in items if other != item and other not in kept]
            said.append(1 + sum(r > count[item] for r in rivals) + sum(r == count[item] for r in rivals) / 2)
        if item in seen:
            unseen[-1] = np.nan
    assert baselines["popularity"].rank_B.tolist() == ranks
    assert np.array_equal(baselines["popularity"].unseen_rank_B, np.array(unseen), equal_nan=True)
    assert np.array_equal(np.isnan(outcomes.unseen_rank_B), np.isnan(unseen))
    assert set(baselines) >= {"popularity", "last item", "item-kNN", "EASE"}
    top = outcomes.top_BK
    assert top.shape == (len(found), 10)
    figures = judge(outcomes, baselines, replicates=10)["figures"]
    names = {row["metric"] for row in figures}
    assert {"ndcg_at_10", "mrr_at_10_unseen", "recall_at_100", "coverage_at_10", "popularity_ratio_at_10"} <= names
    (row,) = [row for row in figures if row["metric"] == "mean_log_rank" and row["slice"] == "all"]
    assert row["baselines"]["popularity"] == pytest.approx(np.mean(np.log(ranks)))


def histories(source) -> dict[tuple[int, int], list[int]]:
    found = {}
    for batch in RequestLoader(source, requests_per_batch=8, shuffle="none", columns=("history_item_id",)):
        offsets, items = batch.history_offsets_R1.tolist(), batch.history["item_id"].tolist()
        for r, (user, request) in enumerate(zip(batch.user_id_R.tolist(), batch.request["request_id"].tolist())):
            found[user, request] = items[offsets[r] : offsets[r + 1]]
    return found


def test_a_training_user_is_in_order_of_time_though_histories_are_cut():
    times = torch.arange(10)
    batch = replace(
        random_batch([min(t, 3) for t in range(10)], [1] * 10),
        user_id_R=torch.full((10,), 7),
        item_id_B=100 + times,
        request={"request_ts": times, "request_id": times},
        history={"item_id": torch.tensor([100 + event for t in range(10) for event in range(max(0, t - 3), t)])},
    )
    (found,) = _sequences([batch], [batch], _items, 0)
    assert found.tolist() == list(range(100, 110))


def test_rules_are_given_the_events_of_a_category_alone_and_rank_beside_all_that_was_seen(source, tmp_path):
    model = TwoTowerConfig.from_schema(source.schema, output_width=4, **SIZES)
    config = configuration(model, "user")
    run = RankRun(lambda _: None, config, source, tmp_path, None)
    with torch.no_grad():
        outcomes = run.evaluate(run.splits.test)
    given: list[Histories] = []

    class Given:
        def __init__(self, interactions):
            self.num_items = interactions.num_items

        def scores(self, histories):
            given.append(histories)
            return histories.weights(self.num_items)

    def ranked(**events):
        train = splits_of(config, source).train
        return retrieval_baselines(config, source, outcomes, train, {"given": Given}, **events)["given"]

    every, none = ranked(), ranked(positive_category="action", positive_values=())
    clicked = ranked(positive_category="action", positive_values=[1, 3])
    lengths = [len(one.item_T) for one in given]
    assert lengths[0] > lengths[2] > lengths[1] == 0
    # nothing scores above another, so that what was not seen shares the places
    assert len(set(none.rank_B)) == 1
    assert np.array_equal(np.isnan(none.unseen_rank_B), np.isnan(every.unseen_rank_B))
    assert not np.array_equal(clicked.rank_B, every.rank_B)


@pytest.mark.parametrize("seed", [0, 1])
def test_retrieval_baselines_are_fitted_on_so_many_training_users_whatever_the_seed_of_a_run(seed):
    users = np.arange(200_000)
    train = Splits.by_user(0.1, 0.1, seed).train
    found = fitted_users(users[train.contains(users, users)], seed)
    assert len(found) == pytest.approx(MOST_USERS, abs=5 * MOST_USERS**0.5)
    assert len(fitted_users(users[:MOST_USERS], seed)) == MOST_USERS
