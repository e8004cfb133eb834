from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from reqdedup.training.judgement.judge import flat, judge
from reqdedup.training.judgement.outcomes import Outcomes, Ranked, Scored
from reqdedup.training.report import no_better, verdict


@pytest.fixture(scope="module")
def scored() -> Scored:
    rng = np.random.default_rng(0)
    size = 400
    label = rng.integers(0, 2, (size, 2)).astype(float)
    label[::9, 1] = np.nan
    return Scored(
        user_id_B=np.repeat(np.arange(40), 10),
        request_id_B=np.repeat(np.arange(80), 5),
        item_id_B=rng.integers(0, 30, size),
        request_ts_B=np.repeat(np.arange(80), 5),
        history_length_B=np.repeat(rng.integers(0, 80, 80), 5),
        slice_B={"surface": rng.integers(0, 3, size)},
        labels=("click", "save"),
        logit_BL=np.nan_to_num(label) * 2 + rng.standard_normal((size, 2)),
        label_BL=label,
    )


def test_a_model_stands_beside_the_best_baseline_with_an_interval_over_users(scored):
    rng = np.random.default_rng(1)
    noise = replace(scored, logit_BL=rng.standard_normal((400, 2)))
    weak = replace(scored, logit_BL=scored.logit_BL + 2 * rng.standard_normal((400, 2)))
    found = judge(scored, {"noise": noise, "weak": weak})
    assert found == json.loads(json.dumps(found)), "plain values"
    assert (found["rows"], found["requests"], found["users"], found["replicates"]) == (400, 80, 40, 200)
    rows = {(row["metric"], row["slice"]): row for row in found["figures"]}
    row = rows["auc_click", "all"]
    assert row["best_baseline"] == "weak"
    assert row["low"] < row["value"] < row["high"]
    assert row["gain"] == pytest.approx(row["value"] - row["baselines"]["weak"])
    assert 0 < row["gain_low"] < row["gain"] < row["gain_high"]
    loss = rows["log_loss_click", "all"]
    assert loss["gain"] == pytest.approx(loss["baselines"][loss["best_baseline"]] - loss["value"]), "less is better"
    assert rows["auc_save", "all"]["rows"] == np.isfinite(scored.label_BL[:, 1]).sum() < 400, "of a known label"
    assert {name for _, name in rows} == {
        "all", "history under 5", "history 5 to 49", "history from 50", "surface 0", "surface 1", "surface 2",
    }  # fmt: skip
    under = scored.history_length_B < 5
    assert rows["auc_click", "history under 5"]["rows"] == under.sum()
    assert [len(table) for table in found["calibration"].values()] == [10, 10]
    assert flat(found)["auc_click"] == row["value"]
    assert flat(found)["normalised_entropy_click_chance"] == 1.0


def test_no_better_than_itself(scored):
    found = judge(scored, {"the same": scored}, replicates=20)
    for row in found["figures"]:
        if row["best_baseline"]:
            assert row["gain"] == 0


def test_baselines_are_judged_by_the_models_rows_in_whatever_order_theirs_lie(scored):
    scored = replace(scored, item_id_B=np.arange(len(scored)))
    weak = replace(scored, logit_BL=scored.logit_BL + np.random.default_rng(1).standard_normal((400, 2)))
    order_B = np.random.default_rng(2).permutation(len(scored))
    arrays = {name: x[order_B] for name, x in vars(weak).items() if isinstance(x, np.ndarray)}
    shuffled = replace(weak, **arrays, slice_B={"surface": weak.slice_B["surface"][order_B]})
    assert judge(scored, {"weak": shuffled}, replicates=5) == judge(scored, {"weak": weak}, replicates=5)
    other = replace(shuffled, item_id_B=shuffled.item_id_B + 1)
    with pytest.raises(ValueError, match="the same rows required of both, found 400 and 400, not all of them equal"):
        judge(scored, {"other": other}, replicates=5)


def test_shares_of_ranks_add_up_to_the_whole(scored):
    def part(at):
        arrays = {name: x[at] for name, x in vars(scored).items() if isinstance(x, np.ndarray)}
        return replace(scored, **arrays, slice_B={"surface": scored.slice_B["surface"][at]})

    whole = Outcomes.concatenate([part(slice(0, 130)), part(slice(130, 130)), part(slice(130, 400))])
    assert judge(whole, replicates=3) == judge(scored, replicates=3)


def test_what_cannot_be_known_is_none(scored):
    one_class = replace(scored, label_BL=np.ones_like(scored.label_BL))
    rows = {row["metric"]: row for row in judge(one_class, replicates=3)["figures"] if row["slice"] == "all"}
    assert rows["auc_click"]["value"] is None
    assert rows["normalised_entropy_click"]["value"] is None
    assert math.isnan(flat(judge(one_class, replicates=0))["auc_click"])
    none = replace(scored, label_BL=np.full_like(scored.label_BL, np.nan))
    rows = {row["metric"]: row for row in judge(none, replicates=3)["figures"] if row["slice"] == "all"}
    assert rows["log_loss_click"]["chance"] is None


def test_coverage_and_popularity_describe_what_is_shown(scored):
    facts = {name: getattr(scored, name)[:4] for name in vars(scored) if name.endswith("_B") and name != "slice_B"}
    top = np.array([[0, 1], [0, 1], [2, 1], [0, 1]])
    ranked = Ranked(
        **facts,
        rank_B=np.array([1.0, 3, 20, 60]),
        unseen_rank_B=np.array([1.0, 2, np.nan, 10]),
        num_items=100,
        top_BK=top,
        own_count_B=np.array([2, 2, 4, 0]),
        count_C=np.arange(100),
    )
    found = flat(judge(ranked, {"rule": ranked}, replicates=5))
    assert found["coverage_at_2"] == 0.03
    assert found["popularity_ratio_at_2"] == pytest.approx((0 + 1 + 0 + 1 + 2 + 1 + 0 + 1) / 8 / 2)
    judged = {row["metric"]: row["rows"] for row in judge(ranked, replicates=0)["figures"] if row["slice"] == "all"}
    assert (judged["mean_log_rank"], judged["mean_log_rank_unseen"]) == (4, 3)
    assert found["recall_at_50"] == 0.75
    assert found["recall_at_10_unseen"] == 1.0
    assert found["mean_log_rank"] == pytest.approx(np.log([1, 3, 20, 60]).mean())
    assert found["eval_items"] == 100


def test_a_model_that_is_no_better_is_named_with_what_is_as_good():
    def row(model: str, metric: str, value: float, chance: float | None, baseline: float | None, **more: float) -> dict:
        best = None if baseline is None else "popularity"
        return {
            **dict.fromkeys(("low", "high", "gain_low", "gain_high")),
            **more,
            "model": model,
            "metric": metric,
            "value": value,
            "chance": chance,
            "baseline": baseline,
            "best_baseline": best,
        }

    rows = [
        row("retrieval_model", "mean_log_rank", 5.0, 6.0, 4.9),
        row("retrieval_model", "mean_log_rank_unseen", 5.0, None, 4.9),
        row("retrieval_model", "recall_at_10", 0.0, 0.1, 0.2),
        row("ranking_model", "auc_click", 0.6, 0.5, 0.55),
        row("ranking_model", "auc_save", 0.49, 0.5, 0.45),
        row("ranking_model", "auc_like", math.nan, 0.5, None),
        row("ranking_model", "user_auc_click", 0.53, 0.5, 0.54),
        row("ranking_model", "request_auc_click", 0.53, 0.5, 0.52),
        row("ranking_model", "auc_a", 0.53, 0.5, 0.52, low=0.51, high=0.55, gain_low=0.002, gain_high=0.02),
        row("ranking_model", "auc_b", 0.53, 0.5, 0.52, low=0.49, high=0.57, gain_low=-0.01, gain_high=0.03),
        row("retrieval_model", "mean_log_rank", 5.0, 6.0, 5.5, low=3.0, high=7.0, gain_low=0.1, gain_high=0.9),
    ]
    assert no_better(rows) == [
        "retrieval_model: mean_log_rank 5, popularity 4.9",
        "ranking_model: auc_save 0.49, chance 0.5",
        "ranking_model: user_auc_click 0.53, popularity 0.54",
        "ranking_model: auc_b 0.53, chance 0.5 (better by 0.03, which may be chance: 95% interval from -0.01)",
        "ranking_model: auc_b 0.53, popularity 0.52 (better by 0.01, which may be chance: 95% interval from -0.01)",
        "retrieval_model: mean_log_rank 5, chance 6 (better by 1, which may be chance: 95% interval from -1)",
    ]


def test_a_judgement_says_in_one_sentence_whether_the_model_is_better(scored):
    noise = replace(scored, logit_BL=np.random.default_rng(1).standard_normal((400, 2)))
    figures = ", ".join(f"{kind}auc_{label}" for label in ("click", "save") for kind in ("", "user_", "request_"))
    assert (
        verdict(judge(scored, {"noise": noise}, replicates=2))
        == f"clearly better than chance and the best simple rule: {figures}"
    )
    assert verdict(judge(scored, replicates=2)) == f"clearly better than chance: {figures}"
    worse = replace(scored, logit_BL=scored.logit_BL * [1, -1])
    said = verdict(judge(worse, {"a rule": scored}, replicates=2))
    assert said.startswith("NOT clearly better than chance or the best simple rule: auc_click ")
    assert "; auc_save 0." in said
    assert ", chance 0.5; " in said
    sure = replace(scored, logit_BL=scored.logit_BL * 50)  # the same order, and far too sure of it
    said = verdict(judge(sure, replicates=2))
    assert said.startswith(f"clearly better than chance: {figures}. Probabilities NOT clearly better than the rate of ")
    assert "the label alone: normalised_entropy_click " in said
    assert "; normalised_entropy_save " in said
    unknown = replace(scored, label_BL=np.full_like(scored.label_BL, np.nan))
    assert verdict(judge(unknown, replicates=2)).startswith("no verdict: ")
