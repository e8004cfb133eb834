"""The ablation's arms have equally many numbers, its log buys by advertiser, and a request's subject is clicked more."""

from __future__ import annotations

import numpy as np

from benchmarks.model_variants import ARMS, BUYS, FAN_OUT, SIZES, as_large, log, log_with_subjects, num_numbers
from reqdedup.models import TwoTowerConfig


def test_arms_differ_by_a_hundredth_of_their_numbers_at_most():
    inputs = {"item_categories": ("category", "advertiser")}
    plain = TwoTowerConfig(output_width=32, **SIZES, **inputs)
    for name, (_, of_model) in ARMS.items():
        model = as_large(TwoTowerConfig(output_width=32, **SIZES, **inputs, **of_model), num_numbers(plain))
        assert abs(num_numbers(model) / num_numbers(plain) - 1) < 0.01, name
        assert model.tower == of_model.get("tower", "mlp")


def test_purchases_are_rare_and_histories_are_what_was_clicked_before():
    rows = log(300, seed=0).to_pylist()
    clicks, buys = sum(row["click"] for row in rows), sum(row["buy"] for row in rows)
    assert 0.3 * BUYS < buys / clicks < 3 * BUYS
    assert all(row["click"] or not (row["buy"] or row["dwell_s"]) for row in rows)
    clicked: dict[int, list[int]] = {}
    for request in np.unique([row["request"] for row in rows])[:40]:
        of_request = [row for row in rows if row["request"] == request]
        assert of_request[0]["history_item_id"] == clicked.setdefault(of_request[0]["user"], [])
        clicked[of_request[0]["user"]] += [row["item"] for row in of_request if row["click"]]


def test_what_a_request_is_about_is_clicked_more_than_the_rest():
    rows = log_with_subjects(100, seed=0).to_pylist()
    clicks = {
        about: [row["click"] for row in rows if (row["category"] == row["subject"]) is about] for about in (True, False)
    }
    assert np.mean(clicks[True]) > 3 * np.mean(clicks[False])
    assert len(clicks[True]) > 0.4 * len(rows)
    assert max(sum(row["request"] == request for row in rows) for request in range(20)) <= FAN_OUT
