from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.study import arms
from benchmarks.study.__main__ import study
from benchmarks.study.arms import Arm, Block
from benchmarks.study.found import no_worse, recovered
from benchmarks.study.gradient import Moments, gradient_of, moments
from benchmarks.study.log import StudyLog, columns_of, false_negatives
from benchmarks.study.plan import LARGE, QUICK, blocks, configuration, make_log
from benchmarks.study.report import DOCUMENT, read_rows, report
from benchmarks.study.results import gradient_rows, result_rows
from benchmarks.study.run import GradientRun, Outcome, Run, check, meters_of, run_all
from benchmarks.study.statistics import paired
from reqdedup.training import TrainingConfig
from reqdedup.training.rank_run import RankRun

ALONE = replace(QUICK, ranks=1)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> StudyLog:
    return make_log(LARGE, 3, replace(QUICK, num_users=60), tmp_path_factory.mktemp("study"), None)


def main_block(task: str) -> Block:
    (block,) = [b for b in blocks(ALONE, with_movielens=False) if b.name == f"{task}, 1 ranks"]
    return block


def config_of(log: StudyLog, task: str, arm: Arm) -> TrainingConfig:
    return configuration(main_block(task), arm, log, ALONE, 0)


def test_the_recommended_arm_is_training_as_the_library_has_it(log):
    """Only sizes and the learning rate are the study's: order, norms, negatives, optimisers and temperature are not."""
    of_the_study = {"model", "num_steps", "requests_per_step", "learning_rate", "world_size", "seed", "held_out"}
    of_the_study |= {"eval_requests", "catalogue_items", "checkpoint_every", "prefetch_batches"}
    for task, arm in (("ranking", arms.RANKING_DEFAULT), ("retrieval", arms.RETRIEVAL_DEFAULT)):
        assert not arm.changes
        config = config_of(log, task, arm)
        left = TrainingConfig(model=config.model, num_steps=1, requests_per_step=8, learning_rate=1.0)
        changed = {f.name for f in fields(config) if getattr(config, f.name) != getattr(left, f.name)}
        assert changed <= of_the_study


def test_every_arm_is_a_valid_configuration_whose_steps_hold_about_as_many_rows(log):
    for block in blocks(QUICK, with_movielens=False):
        for arm in block.arms:
            config = configuration(block, arm, log, QUICK, 0)
            pieces = log.rows_per_piece(block.task, arm.chunk_rows)
            wanted = block.passes or block.rows / pieces
            assert abs(config.requests_per_step - wanted) <= block.ranks


@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_smaller_pieces_bring_more_users_and_passes_into_as_many_rows(log, task, tmp_path):
    by_order = {
        "sorted": arms.SORTED,
        "whole": {},
        "chunks of 9": {"chunk_rows": 9},
        "chunks of 3": {"chunk_rows": 3},
        "iid": arms.IID,
    }
    found = {}
    for name, changes in by_order.items():
        arm = Arm(name=name, changes=changes)
        config = replace(config_of(log, task, arm), eval_requests=0)
        result = RankRun(lambda _: None, config, log.source, tmp_path / name, None).run(resume=False)
        found[name] = meters_of(tmp_path / name / "metrics.csv")
        block = replace(main_block(task), rows=round(found[name]["rows"]))
        outcome = Outcome(
            run=Run(block=block, arm=arm, seed=0),
            figures={},
            meters=found[name],
            num_steps=result.steps,
            seconds=0.0,
            false_negatives=0.0,
        )
        check(outcome, QUICK)
        if name != "iid":
            with pytest.raises(RuntimeError, match="a pass for every row"):
                check(replace(outcome, run=replace(outcome.run, arm=Arm(name="iid", changes=arms.IID))), QUICK)
    for meter in ("passes", "effective_users"):
        values = [found[name][meter] for name in by_order]
        assert values == sorted(values), meter
    falling = [found[name]["false_negatives"] for name in ("sorted", "chunks of 3", "iid")]
    assert falling == sorted(falling, reverse=True)


def test_the_logs_rows_clicks_and_false_negatives_are_those_of_a_plain_count(log):
    user_B, request_B, item_B, click_B = columns_of(log.source, "user_id", "request_id", "item_id", "click")
    requests = list(dict.fromkeys(zip(user_B, request_B)))
    assert log.rows_R.tolist() == [int(((user_B == u) & (request_B == r)).sum()) for u, r in requests]
    assert log.clicks_R.tolist() == [int(((user_B == u) & (request_B == r) & (click_B > 0)).sum()) for u, r in requests]
    assert log.rows_per_piece("ranking", None) == pytest.approx(len(user_B) / len(requests))
    assert log.rows_per_piece("ranking", 1) == 1
    clicks = list(zip(user_B[click_B > 0][:80] % 7, item_B[click_B > 0][:80] % 23))
    clicked, pairs, false = set(clicks), 0, 0
    for user, item in clicks:
        for _, other in clicks:
            if other != item:
                pairs, false = pairs + 1, false + ((user, other) in clicked)
    assert false_negatives(*np.array(clicks).T) == pytest.approx(false / pairs)


def test_moments_are_the_mean_and_the_trace_of_the_covariance():
    gradients = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Moments()
    for gradient in gradients:
        found.add(gradient)
    torch.testing.assert_close(found.mean_G, gradients.mean(0))
    assert found.noise == pytest.approx(float(gradients.var(0, correction=1).sum()))


def test_gradients_are_taken_at_the_given_weights_and_move_nothing(log):
    config = config_of(log, "ranking", arms.RANKING_DEFAULT)
    run = RankRun(lambda _: None, config, log.source, Path(), None)
    weights = {name: x.clone() for name, x in run.model.state_dict().items()}
    found = moments(config, log.source, weights, num_steps=3, epoch=0)
    assert found.steps == 3
    batch = next(iter(run.loader))
    run.stepper.compute_gradients(batch, 0)
    assert gradient_of(run).shape == found.mean_G.shape
    assert len(found.mean_G) == sum(
        p.numel() for name, p in run.model.named_parameters() if name not in run.optimizer.tables
    )
    again = moments(config, log.source, weights, num_steps=1, epoch=0)
    torch.testing.assert_close(again.mean_G, gradient_of(run))


def test_paired_differences_have_students_interval():
    found = paired([1.1, 2.4, 3.3], [1.0, 2.0, 3.0], relative=False)
    assert found.mean == pytest.approx(0.8 / 3)
    half = 4.303 * found.deviation / 3**0.5
    assert (found.low, found.high) == (pytest.approx(found.mean - half), pytest.approx(found.mean + half))
    assert paired([2.0], [1.0], relative=True).high == math.inf


def test_the_document_is_what_the_report_makes_of_the_results():
    found = report(read_rows("study"), read_rows("study_windows"))
    assert DOCUMENT.read_text() == found, "run `.venv/bin/python -m benchmarks.study.report`"


def row_with(task: str, mean: float, low: float, high: float) -> dict[str, Any]:
    return {"task": task, "value": mean, "spread": [low, high], "runs": 4}


def test_verdicts_follow_from_the_intervals():
    lost, little, none = (row_with("ranking", *of) for of in ((-2, -3, -1), (-0.5, -0.9, -0.1), (0.1, -0.2, 0.4)))
    assert recovered(lost, little) == "partly: 75% of what is lost"
    assert recovered(lost, none) == "yes: 100% of what is lost, and no rest shows"
    assert recovered(none, lost) == "nothing was lost that shows"
    assert recovered(little, lost) == "no: it makes it worse"
    assert no_worse(none, 0.25) == "yes, it loses at most 0.200%"
    assert no_worse(none, 0.1) == "open, it may lose 0.200%"
    assert no_worse(lost, 0.5) == "no, it loses at least 1.000%"
    assert no_worse(row_with("retrieval", 0.1, 0.05, 0.15), 0.02) == "no, it loses at least 0.050 nats"


@pytest.mark.slow
def test_arms_are_trained_on_ranks_and_reported_with_their_gradients():
    (whole,) = [block for block in blocks(QUICK, with_movielens=False) if block.name == "retrieval, 2 ranks"]
    block = replace(whole, arms=(arms.RETRIEVAL_IID, arms.RETRIEVAL_SORTED, arms.RETRIEVAL_DEFAULT))
    said: list[Outcome] = []
    runs = [Run(block=block, arm=arm, seed=0) for arm in block.arms]
    ((outcomes, compared),) = run_all(runs, [GradientRun(block=block, seed=0)], QUICK, movielens=None, say=said.append)
    assert said == outcomes
    check_rows(result_rows(outcomes, QUICK), gradient_rows(compared), block)


@pytest.mark.soak
def test_the_quick_study_trains_and_reports_every_arm_of_a_block():
    rows = study(QUICK, movielens=None, only="retrieval, 2 ranks", write=False)
    (block,) = [block for block in blocks(QUICK, with_movielens=False) if block.name == "retrieval, 2 ranks"]
    of_gradients = [row for row in rows if "effective_rows" in row]
    check_rows([row for row in rows if row not in of_gradients], of_gradients, block)


def check_rows(rows: list[dict[str, Any]], of_gradients: list[dict[str, Any]], block: Block) -> None:
    names = [arm.name for arm in block.arms]
    assert [row["variant"] for row in of_gradients] == names
    assert all(row["value"] > 0 for row in of_gradients)
    assert [row["variant"] for row in rows] == names
    reference = next(row for row in rows if row["variant"] == row["reference"])
    assert reference["value"] == 0
    assert all(row["runs"] == QUICK.main_seeds and row["meters"]["users"] > 0 for row in rows)
    assert {"mean_log_rank", "recall_at_10", "recall_at_50", "recall_at_100"} <= set(reference["figures"])
