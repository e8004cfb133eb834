"""The HTTP benchmark runs: its servers start, its gates hold, every claim has its rows; and a ratio is what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import serving_http


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.soak
def test_every_claim_is_measured(capsys):
    assert serving_http.main(["--trial"]) == 0
    said = capsys.readouterr().out
    for claim in (
        *("less CPU time than by_hand", "less CPU time than naive", "http plumbing", "http router"),
        *("70% of saturation", "3x of saturation", "once and trimmed, Arrow"),
    ):
        assert claim in said


def test_a_ratio_is_the_others_time_over_ours():
    found = {"fast": [1.0, 2.0], "deterministic": [2.0, 2.0], "once": [4.0, 4.0], "by_hand": [1.0, 1.0]}
    found["fast, one at a time"] = [2.0, 2.0]
    rows = {(one["variant"], one["unit"]): one for one in serving_http.cost_rows(found, 512, 100)}
    fast = rows["fast", "x less CPU time than once"]
    assert (fast["value"], fast["spread"], fast["target"]) == (3.0, [2.0, 4.0], 2.0)
    assert rows["deterministic", "x less CPU time than fast"]["target"] == 1 / 1.3
    assert not [unit for _, unit in rows if "naive" in unit]
