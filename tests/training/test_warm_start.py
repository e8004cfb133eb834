"""A run that goes on from a checkpoint learns from later requests alone, and begins where the other ended."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.checkpoint import load_checkpoint, save_checkpoint
from reqdedup.training import TrainingConfig
from reqdedup.training.held_out import Learned, check_held_out
from reqdedup.training.rank_run import RankRun, run_rank
from reqdedup.training.split import Later, Splits, TimeSplit
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
    run_rank(silent, config(num_steps=9), source, str(folder))
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
        (
            {"split_by": "user"},
            "required, split by user, with seed = 0 and at least 0.4 held out, found one split by time",
        ),
        (
            {"held_out": 0.5},
            r"which ended at [-\dT:.]+ or before, found one split by time, which ended at [-\dT:.]+; train",
        ),
        ({"warm_start": "", "teacher": str(first), "held_out": 0.5}, "did not read what this run is judged by"),
    ):
        with pytest.raises(ValueError, match=words):
            run_rank(silent, config(**{"warm_start": str(first), **options}), source, str(tmp_path))


def test_immature_labels_are_learned_from_later(source, tmp_path):
    window_us = TIMES[-1] - TIMES[10]
    run = RankRun(silent, config(label_maturity_s={"click": window_us / 1e6}), source, tmp_path, None)
    assert run.task.learned_until_us == pytest.approx(TIMES[10], abs=1)


def test_later_is_the_part_after_a_time():
    later = Later(TimeSplit(end_us=30), 10)
    assert later.contains(np.zeros(4, np.int64), np.array([5, 10, 11, 30])).tolist() == [False, False, True, False]
    assert later.state() == {"part": {"begin_us": None, "end_us": 30}, "after_us": 10}


def test_what_a_run_began_with_is_not_read_again(source, first, tmp_path):
    until_us = load_checkpoint(first)[LEARNED_UNTIL]
    monday = Path(shutil.copy(first, tmp_path / "checkpoint.pt"))
    tuesday = config(warm_start=str(monday), held_out=0.1, num_steps=9)
    whole = run_rank(silent, tuesday, source, str(tmp_path))  # into the same folder
    assert load_checkpoint(monday)[LEARNED_UNTIL] > until_us
    run = RankRun(silent, tuesday, source, tmp_path, None, from_checkpoint=True)
    assert run.splits.train.state()["after_us"] == until_us, "and not that of its own end"
    gone = replace(tuesday, warm_start=str(tmp_path / "gone.pt"), checkpoint_every=1)
    shutil.copy(first, gone.warm_start)
    run_rank(silent, gone, source, str(tmp_path / "other"))
    Path(gone.warm_start).unlink()
    assert run_rank(silent, gone, source, str(tmp_path / "other"), resume=True).losses == whole.losses


def test_an_epoch_that_was_not_over_is_learned_again(source, first, tmp_path):
    until_us = load_checkpoint(first)[LEARNED_UNTIL]
    for number, (options, wanted_us) in enumerate((
        ({"num_steps": 6}, until_us),  # 48 requests
        ({"num_steps": 5}, None),
        ({"num_steps": 2, "held_out": 0.1, "warm_start": str(first)}, until_us),
        ({"num_steps": 3, "held_out": 0.1, "warm_start": str(first)}, TIMES[round(0.9 * len(TIMES)) - 1]),
    )):  # fmt: skip
        run_rank(silent, config(**options), source, str(tmp_path / str(number)))
        assert load_checkpoint(tmp_path / str(number) / "checkpoint.pt")[LEARNED_UNTIL] == wanted_us
    again = config(warm_start=str(tmp_path / "1" / "checkpoint.pt"), held_out=0.1)
    run = RankRun(silent, again, source, tmp_path, None)
    assert run.splits.train.state()["end_us"] == TIMES[round(0.9 * len(TIMES))], "and begins with the first request"


@pytest.mark.parametrize(
    ("by", "then", "now", "is_refused"),
    [
        ("user", {}, {"held_out": 0.2, "validation": 0.2}, False),
        ("user", {"held_out": 0.2, "validation": 0.2}, {}, False),
        ("user", {}, {"seed": 1}, True),
        ("user", {}, {"validation": 0.1}, True),
        ("user", {"held_out": 0.0}, {}, True),
        ("user", {"seed": 1}, {"held_out": 0.0}, False),
        ("last", {}, {"held_out": 0.1, "seed": 1}, False),
        ("last", {}, {"validation": 0.1}, True),
        ("last", {"validation": 0.1}, {}, False),
        ("time", {"seed": 1}, {"held_out": 0.2, "validation": 0.2}, False),
        ("time", {}, {"held_out": 0.2, "validation": 0.3}, True),
        ("time", {"held_out": 0.2, "validation": 0.2}, {"held_out": 0.3}, False),
    ],
)
def test_a_checkpoint_that_has_read_what_a_run_is_judged_by_is_refused(by, then, now, is_refused):
    user_R, time_R = np.arange(60).repeat(3), np.arange(180)
    keys = [SimpleNamespace(user_id_R=torch.tensor(user_R), request={"request_ts": torch.tensor(time_R)})]
    first, second = (config(split_by=by, **options) for options in (then, now))
    users = first.splits(keys).train.state()
    state = {"config": first.to_dict(), "loaders": [{"order": {"users": users}}]}
    later = {**state, "loaders": [{"order": {"users": {"part": users, "after_us": 0}}}]}
    for one in (state, later):
        if is_refused:
            with pytest.raises(ValueError, match="a training that did not read what this run is judged by required"):
                check_held_out(
                    "monday.pt", Learned.of_checkpoint(one), second, second.splits(keys), and_validation=True
                )
        else:
            check_held_out("monday.pt", Learned.of_checkpoint(one), second, second.splits(keys), and_validation=True)


def test_a_teacher_may_have_read_what_chooses_the_weights_but_not_the_test_part():
    first, second = config(split_by="user", held_out=0.2), config(split_by="user", held_out=0.2, validation=0.2)
    then = Learned(split_by="user", held_out=first.held_out, validation=0.0, seed=0, end_us=None)
    check_held_out("teacher.pt", then, second, Splits.by_user(0.2, 0.2, 0))
    with pytest.raises(ValueError, match=r"seed = 0 and at least 0\.4 held out, found .* seed = 0 and 0\.2 held"):
        check_held_out("monday.pt", then, second, Splits.by_user(0.2, 0.2, 0), and_validation=True)


def test_vectors_of_items_whose_bundle_does_not_say_what_was_held_out_are_refused():
    bundle = Path(__file__).parents[1] / "models" / "bundle_format_1"
    with pytest.raises(ValueError, match=r"bundle_format_1: a bundle that says .* one that does not; export it again"):
        Learned.of_bundle(bundle)
