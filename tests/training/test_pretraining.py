"""Pre-training on timelines, then a ranking model that begins with it: its loss is the double loop, frozen weights stay."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reqdedup.models import DCATConfig
from reqdedup.models.checkpoint import load_checkpoint
from reqdedup.models.foundation.beginning import TAKEN
from reqdedup.training import TrainingConfig
from reqdedup.training.augment import HIDDEN
from reqdedup.training.foundations import finished_foundation
from reqdedup.training.loss import info_nce_naive
from reqdedup.training.rank_run import RankRun, run_rank
from reqdedup.training.split import UserSplit
from reqdedup.training.written import config_for
from tests.training.logs import random_log, with_signal

pytestmark = pytest.mark.slow
SIZES = {"width": 8, "num_layers": 1, "item_table_rows": 64, "category_table_rows": 16, "max_history": 16}


def pretraining(schema, **changes) -> TrainingConfig:
    values = {"num_steps": 12, "max_epochs": 0, "requests_per_step": 16, "learning_rate": 0.02, "world_size": 1}
    return config_for("pretraining", schema, {**values, **changes, "model": SIZES}, said_in="a test")


@pytest.fixture(scope="module")
def log():
    return with_signal(random_log())


@pytest.fixture(scope="module")
def pretrained(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foundation")
    return folder, run_rank(lambda _: None, pretraining(log.schema), log, str(folder))


def test_the_loss_is_the_double_loop_over_pairs(log, tmp_path):
    run = RankRun(lambda _: None, pretraining(log.schema), log, tmp_path, None)
    batch = next(iter(run.loader))
    (pairs,) = run.task.inputs(batch)
    event_PD, item_PD = run.model(batch, pairs)
    loss_sum, num_terms = run.task.loss((event_PD, item_PD), batch, pairs)
    expected = info_nce_naive(
        event_PD,
        item_PD,
        request_of_row_B=torch.arange(len(event_PD)),
        user_id_R=pairs.user_id_P,
        item_id_B=pairs.item_id_P,
        log_q_B=run.task._log_q(pairs.item_id_P),
        temperature=run.config.temperature,
    )
    torch.testing.assert_close(loss_sum / num_terms, expected, rtol=1e-4, atol=1e-5)


def test_exact_frequencies_are_those_of_the_events_of_training_histories(log, tmp_path):
    task = RankRun(lambda _: None, pretraining(log.schema, held_out=0.3, split_by="user"), log, tmp_path, None).task
    histories = {}
    for group in log.groups:
        rows = group.select(["user_id", "request_id", "history_item_id"]).to_pylist()
        histories |= {
            (row["user_id"], row["request_id"]): np.frombuffer(row["history_item_id"], np.int64) for row in rows
        }
    users = np.array(sorted({user for user, _ in histories}))
    known = set(users[UserSplit(held_out=0.3, part="train", seed=task.config.seed).contains(users)].tolist())
    assert 0 < len(known) < len(users)
    counts = Counter(item for (user, _), items in histories.items() if user in known for item in items.tolist())
    item_id = torch.tensor([*counts, 10**6])
    total = sum(counts.values()) + len(counts) + 1
    wanted = torch.tensor([*((count + 1) / total for count in counts.values()), 1 / total]).log()
    torch.testing.assert_close(task._log_q(item_id), wanted)


def test_hidden_events_are_asked_for_by_their_items(log, tmp_path):
    run = RankRun(lambda _: None, pretraining(log.schema, hide_events=0.5), log, tmp_path, None)
    asked = []

    class Watched(torch.nn.Module):
        def forward(self, batch, pairs):
            asked.append((batch, pairs))
            return run.model(batch, pairs)

    replace(run.stepper, trained=Watched()).compute_gradients(next(iter(run.loader)), 0)
    ((seen, pairs),) = asked
    assert (seen.history["item_id"] == HIDDEN).any()
    assert not (pairs.item_id_P == HIDDEN).any()


def test_it_learns_what_comes_next(pretrained):
    _, result = pretrained
    assert sum(result.losses[-3:]) < sum(result.losses[:3])
    assert result.outcomes is not None
    assert result.metrics["mean_log_rank"] > 0


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_a_ranking_model_begins_with_it_frozen_or_at_a_rate_of_its_own(log, pretrained, factor, tmp_path):
    checkpoint = Path(shutil.copy(pretrained[0] / "checkpoint.pt", tmp_path / "foundation.pt"))
    config = TrainingConfig(
        model=DCATConfig.from_schema(log.schema, **SIZES, hidden_widths=(8,)),
        foundation=str(checkpoint),
        rate_factors={"transformer": factor, "embedding.item": factor, "embedding.of_event": factor},
        num_steps=4, max_epochs=0, requests_per_step=16, learning_rate=0.02, world_size=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"judged by required, .* with seed = 0 and 0\.1 held out"):
        run_rank(lambda _: None, replace(config, seed=1), log, str(tmp_path))
    result = run_rank(lambda _: None, config, log, str(tmp_path))
    before, after = load_checkpoint(checkpoint)["model"], load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    moved = [name for name in after if name.startswith(TAKEN) and not torch.equal(after[name], before[name])]
    assert bool(moved) == bool(factor)
    checkpoint.unlink()
    again = run_rank(lambda _: None, config, log, str(tmp_path), resume=True)
    assert again.metrics == result.metrics, "resumed without what it began with"


def test_requests_without_a_positive_row_are_read_too(log, tmp_path):
    run = RankRun(lambda _: None, pretraining(log.schema, held_out=0.0), log, tmp_path, None)
    options = {"columns": (), "requests": 64, "shuffle": "none"}
    loaders = (run.loader, run.make_loader(**options), run.make_loader(**options, positive_label="click"))
    read, there, positive = (sum(batch.num_requests for batch in loader) for loader in loaders)
    assert read == there == sum(run.task.num_requests.values()) > positive


def test_a_model_begins_with_a_finished_pre_training_of_its_own_sizes_table_and_split(log, pretrained):
    folder, result = pretrained
    config = TrainingConfig(
        model=DCATConfig.from_schema(log.schema, **SIZES), num_steps=1, requests_per_step=16, learning_rate=0.02
    )
    with pytest.raises(ValueError, match="a finished pre-training required, found none"):
        finished_foundation(folder, config, None)
    (folder / "result.json").write_text(json.dumps({"steps": result.steps}))
    assert finished_foundation(folder, config, None) == folder / "checkpoint.pt"
    wide = replace(config, model=replace(config.model, width=16))
    for other, snapshot_id, said in (
        (config, 3, "snapshot_id required, 3, found None"),
        (wide, None, "width required, 16, found 8"),
        (replace(config, split_by="time"), None, "split_by required, 'time', found 'user'"),
    ):
        with pytest.raises(ValueError, match=f"a pre-training of the same {said}"):
            finished_foundation(folder, other, snapshot_id)
    (folder / "result.json").write_text(json.dumps({"steps": result.steps + 1}))
    with pytest.raises(ValueError, match=f"found one that ended at step {result.steps}"):
        finished_foundation(folder, config, None)


def test_a_softmax_over_the_catalogue_is_refused(log, tmp_path):
    with pytest.raises(ValueError, match="negatives='batch' required in pre-training, found 'catalogue'"):
        RankRun(lambda _: None, pretraining(log.schema, negatives="catalogue"), log, tmp_path, None)
