"""Slates of the greedy engine equal those of the plain definition, whatever the terms, rules and shapes."""

from __future__ import annotations

import numpy as np
import pytest

from reqdedup.rerank import naive, rerank, slate_measures
from reqdedup.rerank.config import (
    HardSpacing,
    LogVolume,
    Mmr,
    PrefixOverlap,
    Quota,
    SlateConfig,
    SoftSpacing,
    Volume,
)


def request(seed: int, num: int = 40, width: int = 6) -> dict:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((num, width)) + 2 * rng.standard_normal((5, width))[rng.integers(0, 5, num)]
    columns = {
        "flag": rng.random(num) < 0.3,
        "top": rng.integers(0, 4, num),
        "middle": rng.integers(0, 3, num),
        "leaf": rng.integers(0, 2, num),
        "author": np.array(list("abcde"))[rng.integers(0, 5, num)],
    }
    return {
        "scores": rng.standard_normal(num),
        "item_id": rng.permutation(10 * num)[:num] - num,
        "vectors": vectors,
        "columns": columns,
    }


SPACING = SoftSpacing(column="flag", weight=0.5)
PREFIXES = PrefixOverlap(columns=("top", "middle", "leaf"), weight=0.8)
CONFIGS = {
    "scores alone": SlateConfig(length=12),
    "windowed SSD": SlateConfig(length=20, window=4, terms=(Volume(weight=1.5),)),
    "window wider than the vectors": SlateConfig(length=20, window=9, terms=(Volume(weight=1.5),)),
    "window longer than the slate": SlateConfig(length=5, window=30, terms=(Volume(weight=1.5),)),
    "windowed DPP": SlateConfig(length=20, window=5, terms=(LogVolume(weight=0.7),)),
    "MMR": SlateConfig(length=20, window=6, terms=(Mmr(weight=1.2),)),
    "soft spacing": SlateConfig(length=30, window=3, terms=(SPACING,)),
    "prefixes": SlateConfig(length=30, window=3, terms=(PREFIXES,)),
    "hard spacing that cannot hold": SlateConfig(length=40, rules=(HardSpacing(column="author", gap=4),)),
    "quotas": SlateConfig(
        length=15,
        rules=(Quota(column="top", at_most=5), Quota(column="author", value="a", at_least=4)),
    ),
    "all at once": SlateConfig(
        length=25,
        window=5,
        terms=(Volume(weight=1.0), Mmr(weight=0.2), SPACING, PREFIXES),
        rules=(Quota(column="flag", value=1, at_most=6), HardSpacing(column="author", gap=2)),
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("num", [1, 7, 40])
def test_a_slate_is_that_of_the_definition(config: SlateConfig, num: int) -> None:
    for seed in range(4):
        given = request(seed, num)
        assert rerank(config, **given).row.tolist() == naive.slate(config, **given)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_repeated_and_zero_vectors_give_the_slate_of_the_definition(dtype: type) -> None:
    config = SlateConfig(length=40, window=5, terms=(Volume(weight=1.5),))
    for seed in range(10):
        given = request(seed)
        given["vectors"] = given["vectors"].astype(dtype)
        given["vectors"][10:30], given["vectors"][35] = given["vectors"][:20], 0
        assert rerank(config, **given).row.tolist() == naive.slate(config, **given)


def test_the_order_of_the_candidates_does_not_matter() -> None:
    given, config = request(3), CONFIGS["all at once"]
    given["scores"][:] = given["scores"].round()  # ties
    there = rerank(config, **given)
    turn = np.random.default_rng(0).permutation(len(given["scores"]))
    turned = rerank(
        config,
        given["scores"][turn],
        item_id=given["item_id"][turn],
        vectors=given["vectors"][turn],
        columns={name: values[turn] for name, values in given["columns"].items()},
    )
    assert turn[turned.row].tolist() == there.row.tolist()
    assert turned.utility.tolist() == there.utility.tolist()


def test_requests_in_one_call_have_the_slates_they_have_alone() -> None:
    config = CONFIGS["all at once"]
    several = [request(seed, num) for seed, num in enumerate((13, 0, 1, 40))]
    offsets = np.cumsum([0] + [len(given["scores"]) for given in several])
    joined = rerank(
        config,
        np.concatenate([given["scores"] for given in several]),
        item_id=np.concatenate([given["item_id"] for given in several]),
        vectors=np.concatenate([given["vectors"] for given in several]),
        columns={name: np.concatenate([g["columns"][name] for g in several]) for name in several[0]["columns"]},
        row_offsets=offsets,
    )
    for number, given in enumerate(several):
        picks = slice(*joined.offsets_R1[number : number + 2])
        alone = rerank(config, **given)
        assert (joined.row[picks] - offsets[number]).tolist() == alone.row.tolist()
        assert joined.utility[picks].tolist() == alone.utility.tolist()


def test_contributions_add_up_to_the_utility_and_say_what_each_term_did() -> None:
    given, config = request(5), CONFIGS["all at once"]
    slate = rerank(config, **given)
    assert list(slate.contributions) == ["score", "volume", "mmr", "soft_spacing", "prefix_overlap"]
    np.testing.assert_allclose(sum(slate.contributions.values()), slate.utility, rtol=0, atol=1e-12)
    assert slate.contributions["score"].tolist() == given["scores"][slate.row].tolist()
    twice = SlateConfig(length=3, terms=(SPACING, SPACING))
    assert list(rerank(twice, **given).contributions) == ["score", "soft_spacing", "soft_spacing_2"]


def test_candidates_without_a_score_come_last_and_are_counted() -> None:
    given, config = request(6, 10), SlateConfig(length=10, window=3, terms=(Volume(weight=9.0),))
    given["scores"][[2, 7]] = np.nan, np.inf
    given["vectors"][4] = np.nan
    slate = rerank(config, **given)
    assert set(slate.row[-2:].tolist()) == {2, 7}
    assert slate.unscored.tolist() == [2]
    assert slate.contributions["volume"][slate.row.tolist().index(4)] == 0


def test_a_rule_gives_way_when_nothing_fits_and_says_so() -> None:
    config = SlateConfig(length=4, rules=(Quota(column="kind", value=1, at_most=1), HardSpacing(column="kind", gap=1)))
    slate = rerank(config, np.array([4.0, 3, 2, 1]), item_id=np.arange(4), columns={"kind": np.array([1, 1, 1, 2])})
    assert slate.row.tolist() == [0, 3, 1, 2]
    assert slate.relaxed.tolist() == [0, 0, 2, 2]


def test_scores_are_standardised_for_each_request_alone() -> None:
    given = request(8)
    config = SlateConfig(length=10, window=4, standardise=True, terms=(Volume(weight=1.0),))
    scaled = given | {"scores": given["scores"] * 1000 + 7}
    assert rerank(config, **given).row.tolist() == rerank(config, **scaled).row.tolist()


def test_what_is_missing_is_named() -> None:
    given = request(9)
    with pytest.raises(ValueError, match=r"columns flag required, found none"):
        rerank(SlateConfig(length=3, terms=(SPACING,)), given["scores"], item_id=given["item_id"])
    with pytest.raises(ValueError, match=r"vectors of the candidates required"):
        rerank(SlateConfig(length=3, terms=(Mmr(weight=1.0),)), given["scores"], item_id=given["item_id"])
    with pytest.raises(ValueError, match=r"one value per candidate required"):
        rerank(SlateConfig(length=3), given["scores"], item_id=given["item_id"][1:])
    with pytest.raises(ValueError, match=r"row_offsets from 0 to 40"):
        rerank(SlateConfig(length=3), given["scores"], item_id=given["item_id"], row_offsets=np.array([0, 5]))


def test_measures_agree_with_plain_counts() -> None:
    scores, kinds = np.array([3.0, 2, 1, 0]), np.array([1, 1, 2, 2])
    vectors = np.array([[1.0, 0], [1, 0], [0, 1], [0, 0]])
    figures = slate_measures(scores, np.array([0, 2, 1]), window=2, vectors=vectors, columns={"kind": kinds})
    assert figures["mean_score"] == 2
    assert figures["dcg_ratio"] == pytest.approx((3 + 1 / np.log2(3) + 2 / 2) / (3 + 2 / np.log2(3) + 1 / 2))
    assert figures["mean_distance"] == 1
    assert figures["distinct_kind"] == 2
    assert figures["adjacent_kind"] == 0
    assert slate_measures(scores, np.zeros(0, int)) == {}
