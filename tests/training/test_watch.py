from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from reqdedup.arrays.windows import HistoryCut
from reqdedup.dedup.encoding import deduplicated_schema
from reqdedup.models import DCATConfig
from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.training import TrainingConfig
from reqdedup.training import step as step_of_training
from reqdedup.training.augment import HIDDEN, hide_events, permute_judgements
from reqdedup.training.rank_run import run_rank
from reqdedup.training.watch import Watch
from tests.models.batches import dcat_config, random_batch, two_tower_config
from tests.training.logs import SCHEMA, RandomLog, random_log


def weighing(value: float) -> nn.Linear:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize(("task", "figures"), [("ranking", [0.6, 0.7, 0.65, 0.7]), ("retrieval", [4.0, 3.0, 3.5, 3.0])])
def test_the_best_weights_are_kept_and_patience_ends(task, figures):
    watch, name = Watch(task, patience=2), {"ranking": "auc_click", "retrieval": "mean_log_rank"}[task]
    for step, figure in enumerate(figures, start=1):
        assert not watch.is_over
        watch.take(step, {name: figure, f"{name}_chance": 9.0, f"{name}_unseen": -9.0}, weighing(step))
    assert (watch.best, watch.best_step, watch.is_over) == (figures[1], 2, True)
    assert float(watch.weights["weight"]) == 2.0
    assert watch.history == list(enumerate(figures, start=1))
    again = Watch(task, patience=2)
    again.load_state_dict(watch.state_dict())
    assert (again.best_step, again.is_over) == (2, True)


def test_labels_are_averaged_and_what_is_not_known_is_no_figure():
    watch = Watch("ranking", patience=0)
    watch.take(1, {"auc_click": math.nan, "auc_save": math.nan}, weighing(1))
    assert watch.weights is None
    watch.take(2, {"auc_click": 0.5, "auc_save": 0.7, "user_auc_click": 0.9}, weighing(2))
    assert watch.best == pytest.approx(0.6)
    for step in range(3, 9):
        watch.take(step, {"auc_click": 0.1}, weighing(step))
    assert not watch.is_over, "no patience, no end"


def test_hidden_events_keep_their_place_and_the_batch_its_values():
    torch.manual_seed(0)
    batch = random_batch([200, 0, 100], [1, 2, 3])
    batch.history["is_long"] = torch.rand(300) < 0.5
    before = {name: x.clone() for name, x in batch.history.items()}
    hidden = hide_events(batch, 0.3)
    is_hidden = hidden.history["item_id"] == HIDDEN
    assert 60 < int(is_hidden.sum()) < 120
    assert (hidden.history["action"][is_hidden] == -1).all()
    assert (hidden.history["is_long"][is_hidden] == -1).all()
    for name, x in before.items():
        assert torch.equal(batch.history[name], x)
        assert torch.equal(hidden.history[name][~is_hidden].to(x.dtype), x[~is_hidden])
    assert hide_events(batch, 0.0) is batch
    empty = replace(batch, history={name: x[:0] for name, x in batch.history.items()})
    assert hide_events(empty, 0.5) is empty


def test_permuted_judgements_are_the_users_rows_in_another_order():
    torch.manual_seed(3)
    batch = random_batch([2, 0, 3, 1, 4, 2, 0], [1] * 7)
    labels = ("click", "save")
    row = {**batch.row, "click": torch.tensor([1.0, 0, 1, 0, 1, 0, 1]), "save": torch.tensor([0.0, 0, 1, 1, 0, 0, 1])}
    batch = replace(batch, user_id_R=torch.tensor([5, 8, 5, 5, 8, 2, 5]), row=row)
    history = {"item_id": batch.history["item_id"], "action": batch.history["action"]}
    plain = replace(batch, history=history)
    found = permute_judgements(plain, labels, HistoryCut(max_events=9))
    offsets = found.history_offsets_R1.tolist()
    events = list(zip(found.history["item_id"].tolist(), found.history["action"].tolist()))
    for user in (2, 5, 8):
        mine = [r for r in range(7) if batch.user_id_R[r] == user]
        seen = sorted((events[offsets[r] : offsets[r + 1]] for r in mine), key=len)
        assert [len(one) for one in seen] == list(range(len(mine)))
        assert all(long[: len(short)] == short for short, long in pairwise(seen)), "prefixes of one order"
        judged = {int(batch.item_id_B[r]): int(row["click"][r] + 2 * row["save"][r]) for r in mine}
        assert set(seen[-1]) <= set(judged.items())
        for r in mine:
            assert int(batch.item_id_B[r]) not in [item for item, _ in events[offsets[r] : offsets[r + 1]]]
    with pytest.raises(ValueError, match="requests of one row"):
        permute_judgements(random_batch([2], [3]), labels, HistoryCut(max_events=9))
    torch.manual_seed(3)
    cut = permute_judgements(plain, labels, HistoryCut(max_events=2, stride=1))
    assert cut.history_offsets_R1.diff().max() == 2 < found.history_offsets_R1.diff().max()


def test_permuted_histories_number_the_labels_as_the_log_does_and_are_no_longer_than_its_own(tmp_path, monkeypatch):
    plain = random_log(largest_fan_out=1, largest_history=3)
    schema = EngagementSchema((*SCHEMA.columns, Column(name="save", dtype="int32", level=Level.LABEL, nullable=True)))
    groups = []
    for group in plain.groups:
        save = pa.array(np.arange(group.num_rows) % 3 == 0).cast(pa.int32())
        groups.append(pa.RecordBatch.from_arrays([*group.columns, save], schema=deduplicated_schema(schema)))
    model = DCATConfig.from_schema(schema, labels=("save",), width=8, num_layers=1, max_history=2, positions="learned")
    config = TrainingConfig(
        model=model, permute_judgements=True, shuffle="users", num_steps=2, requests_per_step=16, learning_rate=0.1,
        world_size=1, held_out=0.0,
    )  # fmt: skip
    steps = []
    monkeypatch.setattr(step_of_training, "hide_events", lambda batch, share: steps.append(batch) or batch)
    run_rank(lambda _: None, config, RandomLog(groups, {}, schema), str(tmp_path))
    longest = 0
    for batch in steps:
        click_B, save_B = (torch.nan_to_num(batch.row[name]).int() for name in ("click", "save"))
        action = dict(zip(batch.item_id_B.tolist(), (click_B + 2 * save_B).tolist()))
        events = list(zip(batch.history["item_id"].tolist(), batch.history["action"].tolist()))
        assert events
        assert set(events) <= set(action.items())
        longest = max(longest, int(batch.history_offsets_R1.diff().max()))
    assert longest == 2


@pytest.mark.parametrize("changes", [{"shuffle": "requests"}, {"model": two_tower_config()}])
def test_judgements_are_permuted_of_ranking_and_of_users_together_alone(changes):
    values = {"model": dcat_config(), "shuffle": "users", "num_steps": 1, "requests_per_step": 4, "learning_rate": 0.1}
    with pytest.raises(ValueError, match="a ranking model and shuffle='users' required, found"):
        TrainingConfig(permute_judgements=True, **{**values, **changes})
