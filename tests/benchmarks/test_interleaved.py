"""Timing in turns: what is run how often, and which ratio is reported."""

from __future__ import annotations

from benchmarks.interleaved import Timings, interleaved, line, ratio_row


def test_variants_take_turns_and_times_are_per_call_and_unit():
    now, calls = [0.0], []

    def variant(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds

        return run

    timings = interleaved(
        {"ours": variant("ours", 1.0), "theirs": variant("theirs", 20.0)},
        rounds=2,
        repeats={"ours": 3},
        units={"theirs": 10},
        clock=lambda: now[0],
    )
    warm_up = ["ours", "theirs"]
    assert calls == [*warm_up, "ours", "ours", "ours", "theirs", "theirs", "ours", "ours", "ours"]
    assert timings.seconds == {"ours": [1.0, 1.0], "theirs": [2.0, 2.0]}


def test_the_figure_is_the_median_of_the_ratios_within_rounds():
    timings = Timings({"reqdedup": [1.0, 2.0, 1.0], "theirs": [10.0, 10.0, 30.0]})
    row = ratio_row("claim", timings, baseline="theirs", sizes={"rows": 3}, target=11.0, predicted=12.0)
    assert (row["value"], row["spread"], row["runs"]) == (10.0, [5.0, 30.0], 3)
    assert row["seconds"] == {"reqdedup": 1.0, "theirs": 10.0}
    assert "NOT reached" in line(row)
    assert "NOT" not in line(row | {"target": 10.0})
