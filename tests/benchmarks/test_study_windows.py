"""The windows study trains every arm and reports its paired difference; its arms are windows of the sizes it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.study.windows import ARMS, FIGURE, REFERENCE, Run, figures_of, rows_of
from reqdedup.training.blocks import HistoryCut


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_holds_as_many_events_as_its_row_says(arm):
    end = np.arange(1_000, 2_000)
    length = end - HistoryCut(max_events=arm.max_events, stride=arm.stride).start_of(end)
    assert length.max() == arm.max_events
    (row,) = [
        row for row in rows_of("log", [_RUN], [_figures()]) if row["variant"] == arm.name and "auc" in row["unit"]
    ]
    assert length.mean() == pytest.approx(row["mean_events"], abs=0.51)


@pytest.mark.slow
def test_every_arm_is_trained_on_the_same_log():
    found = figures_of(Run(movielens=None, seed=1, num_users=20, num_steps=1))
    assert set(found) == {(task, arm.name) for task in FIGURE for arm in ARMS}
    assert all(math.isfinite(figure) for figure in found.values())


_RUN = Run(movielens=None, seed=0, num_users=1, num_steps=1)


def _figures() -> dict[tuple[str, str], float]:
    return {(task, arm.name): 1.0 + (arm is REFERENCE) for task in FIGURE for arm in ARMS}
