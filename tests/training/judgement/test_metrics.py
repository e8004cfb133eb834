from __future__ import annotations

import math

import duckdb
import numpy as np
import pytest
import torch

from reqdedup.training.judgement import metrics
from reqdedup.training.judgement.catalogue_ranks import ranks_of_rows


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


def test_auc_without_rows_or_with_one_class_is_nan():
    nan = torch.full((3,), math.nan)
    assert math.isnan(metrics.auc(torch.zeros(3), nan))
    assert math.isnan(metrics.auc(torch.zeros(3), torch.ones(3)))


@pytest.mark.parametrize("num_rows", [20, 600])
def test_ranks_equal_a_loop_over_the_catalogue(num_rows):
    rng = np.random.default_rng(2)
    score_RC, is_seen_RC = rng.integers(-6, 7, (5, 40)).astype(float), rng.random((5, 40)) < 0.3
    request_of_row, place = rng.integers(0, 5, num_rows), rng.integers(-1, 40, num_rows)
    own = np.where(place < 0, 1.0, score_RC[request_of_row, place])
    found = ranks_of_rows(score_RC, own, request_of_row_B=request_of_row, place_B=place, is_seen_RC=is_seen_RC)
    for row, (r, at) in enumerate(zip(request_of_row.tolist(), place.tolist())):
        others = [c for c in range(40) if c != at]
        unseen = [c for c in others if not is_seen_RC[r, c]]
        for ranks, rivals in zip(found, (others, unseen)):
            scores = score_RC[r, rivals]
            assert ranks[row] == 1 + (scores > own[row]).sum() + (scores == own[row]).sum() / 2


def test_chance_log_rank_is_the_mean_over_all_ranks():
    assert math.isclose(metrics.chance_log_rank(50), sum(math.log(rank) for rank in range(1, 51)) / 50)
