"""A run that goes on from a checkpoint learns from later requests alone, and begins where the other ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.checkpoint import load_checkpoint, save_checkpoint
from reqdedup.training import TrainingConfig
from reqdedup.training.rank_run import RankRun, run_rank
from reqdedup.training.split import Later, TimeSplit
from reqdedup.training.warm_start import LEARNED_UNTIL
from tests.training.logs import SCHEMA, random_log, with_signal

SIZES = {"width": 8, "num_layers": 1, "item_table_rows": 64, "category_table_rows": 8, "hidden_widths": (6,)}
LABEL = ("click",)


def config(**options) -> TrainingConfig:
    model = options.pop("model", None) or DCATConfig.from_schema(SCHEMA, labels=LABEL, **SIZES)
    values = {"num_steps": 3, "requests_per_step": 8, "learning_rate": 0.01, "world_size": 1, "split_by": "time"}
    return TrainingConfig(model=model, **{**values, "held_out": 0.4, "baselines": False, **options})


def silent(progress) -> None:
    pass


LOG = random_log(num_groups=4, requests_per_group=20, seed=2)
TIMES = sorted(request["request_ts"] for request in LOG.requests.values())


@pytest.fixture(scope="module")
def source():
    return with_signal(LOG)


@pytest.fixture(scope="module")
def first(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    run_rank(silent, config(), source, str(folder))
    return folder / "checkpoint.pt"


def test_it_goes_on_with_later_requests_from_the_same_weights_and_squares(source, first, tmp_path):
    state = load_checkpoint(first)
    until_us = state[LEARNED_UNTIL]
    assert until_us == TIMES[round(0.6 * len(TIMES)) - 1], "the newest before those held out"
    run = RankRun(silent, config(warm_start=str(first), held_out=0.1), source, tmp_path, None)
    assert all(torch.equal(x, state["model"][name]) for name, x in run.model.state_dict().items())
    found, wanted = run.optimizer.state_dict()["tables"]["state"], state["optimizer"]["tables"]["state"]
    assert all(torch.equal(found[n]["squares_V"], wanted[n]["squares_V"]) for n in wanted)
    seen = [time for batch in run.loader for time in batch.request["request_ts"].tolist()]
    assert sorted(set(seen)) == sorted({time for time in TIMES[: round(0.9 * len(TIMES))] if time > until_us})


def test_a_resumed_warm_start_is_the_same(source, first, tmp_path):
    again = config(warm_start=str(first), held_out=0.1, checkpoint_every=1, max_epochs=2)
    whole = run_rank(silent, again, source, str(tmp_path / "whole"))
    run_rank(silent, again, source, str(tmp_path / "halves"))
    resumed = run_rank(silent, again, source, str(tmp_path / "halves"), resume=True)
    assert resumed.losses == whole.losses
    assert len(whole.losses) >= 2


def test_it_begins_with_a_checkpoint_of_format_2_too(source, first, tmp_path):
    state = load_checkpoint(first)
    old = {**{name: x for name, x in state.items() if name != "tasks"}, "format": 2, "log_q": {}}
    save_checkpoint(tmp_path / "old.pt", old)
    run = RankRun(silent, config(warm_start=str(tmp_path / "old.pt"), held_out=0.1), source, tmp_path, None)
    assert all(torch.equal(x, state["model"][name]) for name, x in run.model.state_dict().items())


def test_what_cannot_go_on_is_refused(source, first, tmp_path):
    for options, words in (
        ({"held_out": 0.4}, r"requests to learn from later than \d{4}-\d\d-\d\d \d\d:\d\d required, found none"),
        ({"table_optimizer": "adamw"}, "needs the same table_optimizer, 'adamw' required, found 'adagrad'"),
        (
            {"model": TwoTowerConfig.from_schema(SCHEMA)},
            "needs the same model.kind, 'two_tower' required, found 'dcat'",
        ),
        ({"model": replace(config().model, width=4)}, r"needs the same model\.width, 4 required, found 8$"),
    ):
        with pytest.raises(ValueError, match=words):
            run_rank(silent, config(warm_start=str(first), **options), source, str(tmp_path))


def test_immature_labels_are_learned_from_later(source, tmp_path):
    window_us = TIMES[-1] - TIMES[10]
    run = RankRun(silent, config(label_maturity_s={"click": window_us / 1e6}), source, tmp_path, None)
    assert run.task.learned_until_us == pytest.approx(TIMES[10], abs=1)


def test_later_is_the_part_after_a_time():
    later = Later(TimeSplit(end_us=30), 10)
    assert later.contains(np.zeros(4, np.int64), np.array([5, 10, 11, 30])).tolist() == [False, False, True, False]
    assert later.state() == {"part": {"begin_us": None, "end_us": 30}, "after_us": 10}
