"""W ranks with uneven and empty batches take the step that one process takes on the whole batch, and runs of them end
and go on together.

One start of two ranks for all of it.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.training import TrainingConfig
from reqdedup.training.launch import run_ranks
from tests.training import ranks
from tests.training.logs import in_days, random_log, with_signal
from tests.training.uneven import case_of, model_config

pytestmark = pytest.mark.slow

SIZES = {"even": (8, 8), "uneven": (13, 3), "second empty": (16, 0), "first empty": (0, 16)}
CASES = {(task, name): case_of(task, sizes) for task in ("ranking", "retrieval") for name, sizes in SIZES.items()}
for loss in ("pairwise", "listwise"):
    CASES["ranking", f"uneven, {loss}"] = case_of("ranking", SIZES["uneven"], ranking_loss=loss)
CASES["ranking", "uneven, focal"] = case_of("ranking", SIZES["uneven"], focal_gamma=2.0, positive_weight=4.0)
CASES["retrieval", "uneven, same-user share"] = case_of("retrieval", SIZES["uneven"], same_user_share=0.1)

CONVERSIONS = {
    "positives": (("click", 1.0, "price", 1.0), ("is_new", 0.5, "", 0.0)),
    "hard_negative_weight": 0.5,
    "coarse_column": "position",
}
CASES["retrieval", "uneven, conversions"] = case_of("retrieval", SIZES["uneven"], **CONVERSIONS)
for name in ("uneven", "second empty"):
    CASES["retrieval", f"{name}, a head each"] = case_of(
        "retrieval", SIZES[name], of_model={"heads": ("click", "is_new")}, **CONVERSIONS
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    log_in_memory = with_signal(random_log(num_groups=4, requests_per_group=10))
    log = log_in_memory.write(folder / "log.parquet")
    ahead = TrainingConfig(
        model=model_config("ranking"), num_steps=50, requests_per_step=4, learning_rate=0.01, held_out=0.0
    )
    streaming = TrainingConfig(
        model=model_config("retrieval"), num_steps=4, requests_per_step=4, learning_rate=0.01, held_out=0.0,
        log_q="streaming", checkpoint_every=2,
    )  # fmt: skip
    days = in_days(log_in_memory).write(folder / "days.parquet")
    one_day = replace(ahead, split_by="time", held_out=0.75, eval_requests=0, warmup_steps=1)
    return run_ranks(
        ranks.steps_and_runs,
        [copy.deepcopy(case) for case in CASES.values()],
        (ranks.one_ahead, ahead, log, str(folder / "ahead")),
        (ranks.stop_and_resume, streaming, log, str(folder), 3),
        (ranks.steps_of_run, one_day, days, str(folder / "days")),
        world_size=2,
    )


@pytest.fixture
def results(found):
    return dict(zip(CASES, zip(*(of_rank[0] for of_rank in found))))


def test_a_rank_that_is_resumed_behind_its_share_waits_for_the_others(found):
    assert [of_rank[1][0] for of_rank in found] == [(10, 1, "epochs")] * 2


def test_each_rank_goes_on_with_what_it_had_counted(found):
    for _, (_, (whole, resumed), _) in found:
        assert len(whole) == 4
        assert whole == resumed


def test_all_ranks_learn_from_the_one_row_group_with_training_requests_and_no_step_has_a_rate_of_zero(found):
    for _, (*_, (planned, rates, _)) in found:
        assert planned == 3, "ten requests, four a step"
        assert rates == pytest.approx([1, 2 / 3, 1 / 3])


def test_runs_in_one_process_have_one_group_for_their_norms(found):
    assert [of_rank[1][-1][-1] for of_rank in found] == [1, 1]


@pytest.mark.parametrize("key", CASES, ids=" ".join)
def test_ranks_take_the_step_of_one_process(results, key):
    task, model, batches = CASES[key]
    model = copy.deepcopy(model)
    whole = RequestBatch.concatenate(batches)
    loss_sum, num_terms = task.loss(model(whole), whole)
    (loss_sum / num_terms).backward()
    assert num_terms > 20
    for loss, gradients, buffers in results[key]:
        assert loss == pytest.approx(float(loss_sum.detach()) / num_terms, rel=1e-12)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-11, msg=name)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, rtol=1e-9, atol=1e-11)


def test_the_share_of_same_user_negatives_reaches_the_loss():
    losses = []
    for name in ("uneven", "uneven, same-user share"):
        task, model, batches = CASES["retrieval", name]
        whole = RequestBatch.concatenate(batches)
        losses.append(task.loss(copy.deepcopy(model)(whole), whole)[0].item())
    assert losses[0] < losses[1]
