from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.record import RESULTS
from benchmarks.study import plan
from benchmarks.study.__main__ import study
from benchmarks.study.arms import RETRIEVAL_ARMS, Arm, Block, Steps, Tuned
from benchmarks.study.batching import measure, piece_starts, step_rows
from benchmarks.study.gradient import Moments
from benchmarks.study.log import StudyLog, synthetic_log
from benchmarks.study.models import RankingModel, RankwiseBatchNorm1d, RetrievalModel, TorchLog, set_norms
from benchmarks.study.ranking import Ranking
from benchmarks.study.report import DOCUMENT, read_rows, report
from benchmarks.study.retrieval import loss_of_ranks
from benchmarks.study.run import Run, check_meters
from benchmarks.study.statistics import paired
from reqdedup.training.launch import run_ranks
from reqdedup.training.loss import Columns, row_losses
from tests.training import ranks

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(scope="module")
def log() -> StudyLog:
    torch.set_num_threads(1)
    return synthetic_log(seed=3, num_users=40, num_items=2_000, held_out=0.2)


def _layer(num_ranks: int) -> RankwiseBatchNorm1d:
    layer = RankwiseBatchNorm1d(5).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 5))
        layer.bias.copy_(torch.linspace(-1, 1, 5))
    layer.num_ranks = num_ranks
    return layer


@pytest.mark.soak
def test_simulated_ranks_normalise_as_real_ones_do_with_and_without_synchronisation():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(14, 5, generator=generator, dtype=torch.float64).sort(0).values for _ in range(3)]
    weights = [torch.randn(14, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    plain = nn.BatchNorm1d(5).double()
    plain.load_state_dict(_layer(1).state_dict())
    cases = [
        {"layer": copy.deepcopy(plain), "convert": sync, "sizes": [7, 7], "batches": batches, "output_weights": weights}
        for sync in (False, True)
    ]
    real = run_ranks(ranks.normalise, cases, world_size=2)
    for number, num_ranks in enumerate((2, 1)):
        layer = _layer(num_ranks)
        for step, (batch, weight) in enumerate(zip(batches, weights)):
            x = batch.clone().requires_grad_()
            y = layer(x)
            (y * weight).sum().backward()
            for what, ours in (("outputs", y.detach()), ("gradients", x.grad)):
                theirs = torch.cat([rank[number][what][step] for rank in real])
                torch.testing.assert_close(ours, theirs, **TOLERANCE)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(layer, name), real[0][number]["buffers"][name], **TOLERANCE)
        for name, parameter in layer.named_parameters():
            summed = real[0][number]["parameters"][name] + real[1][number]["parameters"][name]
            torch.testing.assert_close(parameter.grad, summed, **TOLERANCE)


def test_a_simulated_step_has_the_gradient_that_ddp_averages_over_models_of_each_rank(log):
    rows_Wb = step_rows(
        log,
        log.rows(held_out=False, clicks_only=False),
        Arm(name="sorted", order="sorted"),
        Steps(world_size=4, rows=9),
        np.random.default_rng(0),
    )[0]
    torch.manual_seed(0)
    model, data = RankingModel(log).double(), TorchLog(log)
    data.dense_RF, data.click_B, data.position_B = (x.double() for x in (data.dense_RF, data.click_B, data.position_B))
    table = torch.randn(log.num_items + 1, 16, dtype=torch.float64)

    def gradients(rows: np.ndarray, num_ranks: int) -> list[torch.Tensor]:
        shard = copy.deepcopy(model)
        set_norms(shard, num_ranks=num_ranks, norm=True)
        shard.double().train()
        batch = data.batch(torch.from_numpy(rows))
        loss = Ranking().loss(shard, batch, table[batch.item_U], Arm(name="any"), num_ranks)
        return list(torch.autograd.grad(loss, list(shard.parameters())))

    together = gradients(rows_Wb, 4)
    alone = [gradients(rows_Wb[w : w + 1], 1) for w in range(4)]
    for ours, *theirs in zip(together, *alone, strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs).mean(0), **TOLERANCE)


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize(("same_user", "share"), [("kept", 0.0), ("masked", 0.0), ("capped", 0.1)])
def test_the_loss_of_all_ranks_at_once_is_the_projects_loss_rank_by_rank(num_ranks, same_user, share):
    generator = torch.Generator().manual_seed(1)
    rows = 12
    user_BD = torch.randn(rows, 4, generator=generator, dtype=torch.float64).requires_grad_()
    item_BD = torch.randn(rows, 4, generator=generator, dtype=torch.float64).requires_grad_()
    user_id_B = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2, 0, 3, 3, 4])  # rank 1 of 3 holds a single user
    item_id_B = torch.tensor([5, 6, 5, 7, 8, 9, 5, 9, 5, 6, 7, 8])
    log_q_B = torch.randn(rows, generator=generator, dtype=torch.float64)
    ours = loss_of_ranks(
        user_BD,
        item_BD,
        user_id_B=user_id_B,
        item_id_B=item_id_B,
        log_q_B=log_q_B,
        ranks=num_ranks,
        temperature=0.3,
        same_user=same_user,
        same_user_share=share,
    )
    parts = [
        row_losses(
            user_BD[s],
            Columns(item_ND=item_BD[s], item_id_N=item_id_B[s], user_id_N=user_id_B[s], log_q_N=log_q_B[s]),
            request_of_row_B=torch.arange(rows // num_ranks),
            user_id_R=user_id_B[s],
            item_id_B=item_id_B[s],
            temperature=0.3,
            mask_same_user=same_user != "kept",
            same_user_share=share,
        )
        for s in torch.arange(rows).chunk(num_ranks)
    ]
    theirs = sum(part.loss_B.sum() for part in parts) / sum(part.is_legal_B.sum() for part in parts)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    for a, b in zip(
        torch.autograd.grad(ours, [user_BD, item_BD]), torch.autograd.grad(theirs, [user_BD, item_BD]), strict=True
    ):
        torch.testing.assert_close(a, b, **TOLERANCE)


ORDERS = [
    Arm(name="iid"),
    Arm(name="sorted", order="sorted"),
    Arm(name="requests", order="requests"),
    Arm(name="chunks", order="requests", chunk_rows=3),
]


@pytest.mark.parametrize("arm", ORDERS, ids=lambda arm: arm.name)
def test_an_epoch_holds_every_row_of_each_ranks_share_at_most_once(log, arm):
    rows = log.rows(held_out=False, clicks_only=False)
    epoch = step_rows(log, rows, arm, Steps(world_size=3, rows=16), np.random.default_rng(0))
    assert epoch.shape[1:] == (3, 16)
    assert len(np.unique(epoch)) == epoch.size
    assert epoch.size > len(rows) - 3 * 16 - 3
    if arm.order != "iid":
        for rank, share in enumerate(np.array_split(rows, 3)):
            assert np.isin(epoch[:, rank], share).all()


def test_pieces_stay_whole_and_smaller_pieces_bring_more_users(log):
    rows = log.rows(held_out=False, clicks_only=False)
    steps = Steps(world_size=2, rows=64)
    found = {
        arm.name: (step_rows(log, rows, arm, steps, np.random.default_rng(0)), arm)
        for arm in [*ORDERS, Arm(name="chunks of 9", order="requests", chunk_rows=9)]
    }
    for epoch, arm in found.values():
        if arm.chunk_rows:
            stream = epoch[:, 0].ravel()
            lengths = np.diff(np.flatnonzero(np.diff(stream, prepend=-9, append=-9) != 1))
            starts = np.diff(np.append(piece_starts(log.request_B[rows], arm.chunk_rows), len(rows)))
            assert lengths.min() >= 1
            assert starts.max() == arm.chunk_rows
    engaged = log.engaged_pairs()
    meters = {
        name: measure(log, epoch, arm=replace(arm, gather=True), num_rows=len(rows), engaged=engaged)
        for name, (epoch, arm) in found.items()
    }
    order = ["sorted", "requests", "chunks of 9", "chunks", "iid"]
    for name in ("effective_users", "passes"):
        values = [getattr(meters[arm], name) for arm in order]
        assert values == sorted(values), name
    falling = [meters[arm].false_negatives for arm in ("sorted", "chunks", "iid")]
    assert falling == sorted(falling, reverse=True)
    assert meters["sorted"].after_mask < meters["sorted"].false_negatives


def test_false_negatives_and_users_are_those_of_a_plain_count(log):
    rows = log.rows(held_out=False, clicks_only=True)
    epoch = step_rows(log, rows, ORDERS[1], Steps(world_size=2, rows=8), np.random.default_rng(0))[:1]
    masked = replace(ORDERS[1], same_user="masked")
    found = measure(log, epoch, arm=masked, num_rows=len(rows), engaged=log.engaged_pairs())
    clicked = {(u, i) for u, i, c in zip(log.users_of(np.arange(len(log.item_B))), log.item_B, log.click_B) if c > 0}
    pairs = false = legal = still = 0
    for rank in epoch[0]:
        for i in rank:
            for k in rank:
                if log.item_B[i] == log.item_B[k]:
                    continue
                user_i, user_k = log.users_of(np.array([i, k]))
                pairs, false = pairs + 1, false + ((user_i, log.item_B[k]) in clicked)
                if user_i != user_k:
                    legal, still = legal + 1, still + ((user_i, log.item_B[k]) in clicked)
    assert found.false_negatives == pytest.approx(false / pairs)
    assert found.after_mask == pytest.approx(still / max(legal, 1))
    assert found.negatives == pytest.approx(legal / epoch[0].size)
    assert found.epochs == epoch.size / len(rows)
    _, counts = np.unique(log.users_of(epoch), return_counts=True)
    assert found.users == len(counts)
    assert found.effective_users == pytest.approx(1 / np.sum((counts / counts.sum()) ** 2))


def test_an_arm_whose_batches_are_not_what_its_name_says_is_refused(log):
    block = Block(name="b", task="ranking", log=plan.LARGE, steps=Steps(world_size=2, rows=64), arms=(Arm(name="iid"),))
    run = Run(
        block=block,
        arm=Arm(name="iid"),
        tuned=plan.TUNED["ranking", plan.LARGE],
        seed=0,
        sizes=plan.QUICK,
        movielens=None,
    )
    rows = log.rows(held_out=False, clicks_only=False)
    epoch = step_rows(log, rows, ORDERS[1], block.steps, np.random.default_rng(0))
    meters = measure(log, epoch, arm=ORDERS[1], num_rows=len(rows), engaged=log.engaged_pairs())
    with pytest.raises(RuntimeError, match="a pass for nearly every row required"):
        check_meters(meters, run, 128, log)
    check_meters(meters, replace(run, arm=ORDERS[1]), 128, log)


def test_the_user_tower_of_shared_passes_equals_one_pass_per_row(log):
    rows = log.rows(held_out=False, clicks_only=True)[:40]
    torch.manual_seed(0)
    model, data = RetrievalModel(log).train(), TorchLog(log)
    table = torch.randn(log.num_items + 1, 16)
    shared, each = data.batch(torch.from_numpy(rows[None])), data.batch(torch.from_numpy(rows[:, None]))
    assert len(shared.user_P) < len(each.user_P) == len(rows)
    user_PD, item_BD = model(shared, table[shared.item_U])
    user_BD, item_again_BD = model(each, table[each.item_U])
    torch.testing.assert_close(user_PD[shared.pass_of_row_B], user_BD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(item_BD, item_again_BD)


def test_moments_are_the_mean_and_the_trace_of_the_covariance():
    gradients = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for gradient in gradients:
        moments.add(gradient)
    torch.testing.assert_close(moments.mean_G, gradients.mean(0))
    assert moments.noise == pytest.approx(float(gradients.var(0, correction=1).sum()))


def test_hyper_parameters_are_those_that_tuning_chose():
    rows = [json.loads(line) for line in (RESULTS / "study_tuning.jsonl").read_text().splitlines()]
    chosen = {row["claim"]: Tuned(**row["variant"]) for row in rows if row["chosen"]}
    assert chosen == {f"tuning: {log}, {task}, IID": tuned for (task, log), tuned in plan.TUNED.items()}


def test_paired_differences_have_students_interval():
    found = paired([1.1, 2.4, 3.3], [1.0, 2.0, 3.0], relative=False)
    assert found.mean == pytest.approx(0.8 / 3)
    half = 4.303 * found.deviation / 3**0.5
    assert (found.low, found.high) == (pytest.approx(found.mean - half), pytest.approx(found.mean + half))
    assert paired([2.0], [1.0], relative=True).high == float("inf")


def test_the_document_is_what_the_report_makes_of_the_results():
    found = report(read_rows("study"), read_rows("study_windows"))
    assert DOCUMENT.read_text() == found, "run `.venv/bin/python -m benchmarks.study.report`"


@pytest.mark.slow
def test_the_quick_study_trains_and_reports_every_arm_of_a_block_with_its_meters():
    rows = study(plan.QUICK, movielens=None, processes=1, only="retrieval, 4 ranks", write=False)
    of_gradients = [row for row in rows if "group" in row]
    assert len(of_gradients) == 2 * len(RETRIEVAL_ARMS)
    assert all(row["value"] > 0 for row in of_gradients)
    rows = [row for row in rows if "group" not in row]
    assert [row["variant"] for row in rows] == [arm.name for arm in RETRIEVAL_ARMS]
    reference = next(row for row in rows if row["variant"] == row["reference"])
    assert reference["value"] == 0
    assert all(row["runs"] == plan.QUICK.main_seeds and row["meters"]["users"] > 0 for row in rows)
    assert {"log_rank", "recall_at_10", "recall_at_50", "recall_at_100"} <= set(reference["figures"])
