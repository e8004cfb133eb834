from __future__ import annotations

import math

import duckdb
import pytest
import torch

from reqdedup.training.judgement import metrics


@pytest.mark.parametrize("num_scores", [3, 1000])
def test_auc_equals_counting_all_pairs(num_scores):
    torch.manual_seed(0)
    score = torch.randint(0, num_scores, (200,)).float()
    label = torch.randint(0, 2, (200,)).float()
    label[::7] = math.nan
    pairs = duckdb.sql(
        "with rows as (select unnest($1) s, unnest($2) y) select avg(case when p.s > n.s then 1e0 when p.s = n.s then 5e-1 "
        "else 0e0 end) from rows p, rows n where p.y = 1 and n.y = 0",
        params=[score.tolist(), label.tolist()],
    ).fetchall()[0][0]
    assert math.isclose(metrics.auc(score, label), pairs, rel_tol=1e-12)


def test_auc_and_log_loss_without_rows_or_with_one_class_are_nan():
    nan = torch.full((3,), math.nan)
    assert math.isnan(metrics.auc(torch.zeros(3), nan))
    assert math.isnan(metrics.auc(torch.zeros(3), torch.ones(3)))
    assert math.isnan(metrics.log_loss(torch.zeros(3), nan))
    assert math.isnan(metrics.base_log_loss(nan))


def test_log_loss_equals_a_loop_and_the_base_is_the_best_constant():
    torch.manual_seed(1)
    logit, label = torch.randn(50).double(), torch.randint(0, 2, (50,)).double()
    label[3] = math.nan
    rows = [(z, y) for z, y in zip(logit.tolist(), label.tolist()) if not math.isnan(y)]
    wanted = sum(math.log1p(math.exp(-z)) if y else math.log1p(math.exp(z)) for z, y in rows) / len(rows)
    assert math.isclose(metrics.log_loss(logit, label), wanted, rel_tol=1e-12)
    rate = sum(y for _, y in rows) / len(rows)
    constant = torch.full_like(logit, math.log(rate / (1 - rate)))
    assert math.isclose(metrics.base_log_loss(label), metrics.log_loss(constant, label), rel_tol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_ranks_equal_a_loop_over_the_catalogue(chunk):
    torch.manual_seed(2)
    user, catalogue = torch.randint(-2, 3, (5, 3)).double(), torch.randint(-2, 3, (40, 3)).double()
    ids = torch.arange(40) * 10
    request_of_row, place = torch.randint(0, 5, (20,)), torch.randint(0, 40, (20,))
    found = metrics.ranks_in_catalogue(
        user,
        catalogue[place],
        catalogue,
        request_of_row_B=request_of_row,
        item_id_B=ids[place],
        catalogue_item_id_C=ids,
        chunk=chunk,
    )
    wanted = []
    for r, own in zip(request_of_row.tolist(), place.tolist()):
        scores = (catalogue @ user[r]).tolist()
        others = [scores[c] for c in range(40) if c != own]
        wanted.append(1 + sum(s > scores[own] for s in others) + sum(s == scores[own] for s in others) / 2)
    assert found.tolist() == wanted
    assert metrics.recall_at_k(found, (1, 10)) == {k: sum(rank <= k for rank in wanted) / len(wanted) for k in (1, 10)}
    assert math.isclose(metrics.mean_log_rank(found), sum(map(math.log, wanted)) / len(wanted))


def test_chance_log_rank_is_the_mean_over_all_ranks():
    assert math.isclose(metrics.chance_log_rank(50), sum(math.log(rank) for rank in range(1, 51)) / 50)
