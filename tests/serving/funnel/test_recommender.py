"""The funnel: each step equals its plain definition, and says what it took; a slate that fails leaves the ranking's."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reqdedup.rerank import SlateConfig, rerank
from reqdedup.serving.funnel.config import FunnelConfig, LightRanking, load_funnel_config
from reqdedup.serving.funnel.recommender import Recommender
from reqdedup.serving.inputs import UserReader
from reqdedup.serving.requests import ItemFilter, Ranked, RecommendRequest, RequestError, Retrieved
from reqdedup.serving.retrieval.item_vectors import ItemVectors

ROOT = Path(__file__).resolve().parents[3]

NUM_ITEMS, DAY_S = 200, 86_400
NOW_S = 1_790_000_000.0


NO_STORE = UserReader(store=None, on_missing_history="empty", columns=(), names=(), cuts=())


def all_items():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((NUM_ITEMS, 8)).astype(np.float32)
    columns = {
        "item_category": rng.integers(0, 5, NUM_ITEMS),
        "count": rng.integers(0, 1000, NUM_ITEMS),
        "first_seen": ((NOW_S - rng.uniform(0, 30, NUM_ITEMS) * DAY_S) * 1e6).astype(np.int64),
    }
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(5, 5 + 3 * NUM_ITEMS, 3)
    return ItemVectors.of(ids, vectors, columns, [f"item-{item}" for item in ids])


class ByAxis:
    """Retrieves the items of the largest first coordinates."""

    users = NO_STORE

    def __init__(self, items):
        self.items, self.asked = items, []

    def retrieve(self, request):
        self.asked.append(request)
        allowed = np.isin(
            self.items.item_id, request.filter.deny if request.filter.deny is not None else [], invert=True
        )
        row = np.flatnonzero(allowed)
        row = row[np.argsort(-self.items.vectors[row, 0])[: request.k]]
        return Retrieved(
            item_id=self.items.item_id[row],
            score=self.items.vectors[row, 0],
            index="exact",
            model="tower",
            start=2,
            end=9,
            version=1,
            context="kept",
            marks=() if request.user_id == 7 else ("history",),
        )


class ByCategory:
    """Ranks by category and id."""

    users, labels, fingerprint = NO_STORE, ("click", "save"), "ranker"

    def __init__(self):
        self.asked = []

    def rank(self, request):
        self.asked.append(request)
        logits = {
            "click": np.asarray(request.candidates["item_category"], np.float32) / 4 - 1,
            "save": np.asarray(request.candidates["item_id"] % 7, np.float32) - 3,
        }
        return Ranked(logits=logits, model="ranker", start=0, end=9, version=1, context="extended", marks=())


def recommender(config=None, ranker=None):
    return Recommender(ByAxis(all_items()), ranker or ByCategory(), config, now_s=lambda: NOW_S)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


CONFIG = FunnelConfig(
    retrieved=60,
    ranked=30,
    light=LightRanking(popularity=0.3, freshness=0.2, half_life_days=3),
    labels=(("click", 1.0), ("save", 0.5)),
    slate=SlateConfig.from_dict({
        "format": 1, "length": 10, "window": 4,
        "terms": [{"kind": "volume", "weight": 0.3}, {"kind": "prefix_overlap", "weight": 0.1, "columns": ["item_category"]}],
    }),
)  # fmt: skip


def test_every_step_is_its_plain_definition():
    ours = recommender(CONFIG)
    found = ours.recommend(RecommendRequest(user_id=7, explains=True))
    items = all_items()
    rows = np.argsort(-items.vectors[:, 0])[:60]
    share = np.log1p(items.columns["count"]) / np.log1p(items.columns["count"].max())
    age_days = (NOW_S - items.columns["first_seen"] / 1e6) / DAY_S
    light = items.vectors[:, 0] + 0.3 * share + 0.2 * 0.5 ** (age_days / 3)
    rows = rows[np.argsort(-light[rows])[:30]]
    score = sigmoid(items.columns["item_category"] / 4 - 1) + 0.5 * sigmoid(items.item_id % 7 - 3.0)
    slate = rerank(
        CONFIG.slate, score[rows], item_id=items.item_id[rows], vectors=items.vectors[rows],
        columns={"item_category": items.columns["item_category"][rows]},
    )  # fmt: skip
    assert found.ranked_item_id.tolist() == items.item_id[rows].tolist()
    np.testing.assert_allclose(found.ranked_score, score[rows], rtol=1e-6)
    assert found.item_id.tolist() == items.item_id[rows[slate.row]].tolist()
    assert found.item_key == [f"item-{item}" for item in found.item_id]
    assert list(found.contributions) == ["score", "volume", "prefix_overlap"]
    np.testing.assert_allclose(sum(found.contributions.values()), slate.utility, rtol=1e-6)
    np.testing.assert_allclose(found.score, found.contributions["score"])
    assert [(step.name, step.received, step.passed) for step in found.steps] == [
        ("retrieval", NUM_ITEMS, 60), ("light_ranking", 60, 30), ("ranking", 30, 30), ("reranking", 30, 10),
    ]  # fmt: skip
    assert all(step.seconds >= 0 for step in found.steps)
    assert (found.retrieval_model, found.ranking_model, found.context, found.marks) == (
        "tower",
        "ranker",
        "extended",
        (),
    )


def test_marks_of_the_steps_are_marks_of_the_answer():
    ranker = ByCategory()
    ours = recommender(CONFIG, ranker)
    ours.recommend(RecommendRequest(user_id=7, at=9, version=1))
    assert (ranker.asked[-1].at, ranker.asked[-1].version) == (9, 1)
    assert set(ranker.asked[-1].candidates) == {"item_id", "item_category", "count", "first_seen"}
    assert ours.recommend(RecommendRequest(user_id=8)).marks == ("history",)


def test_a_reranking_that_fails_leaves_the_best_by_score_marked(monkeypatch):
    def fails(*_, **__):
        raise FloatingPointError("a defect")

    monkeypatch.setattr("reqdedup.serving.funnel.recommender.rerank", fails)
    found = recommender(CONFIG).recommend(RecommendRequest(user_id=7, length=4, explains=True))
    assert found.marks == ("reranking",)
    assert found.contributions == {}
    assert found.score.tolist() == sorted(found.ranked_score.tolist(), reverse=True)[:4]


def test_nothing_allowed_is_an_empty_slate():
    ranker = ByCategory()
    deny = ItemFilter(deny=all_items().item_id)
    found = recommender(CONFIG, ranker).recommend(RecommendRequest(user_id=7, filter=deny))
    assert (found.item_id.tolist(), found.item_key, found.ranking_model, found.marks) == ([], [], "ranker", ())
    assert not ranker.asked


@pytest.mark.parametrize("length", [0, 101])
def test_a_slate_longer_than_what_is_ranked_is_refused(length):
    with pytest.raises(RequestError, match=f"length: 1 to 100 items required, found {length}"):
        recommender().recommend(RecommendRequest(user_id=7, length=length))


def test_a_configuration_is_read_and_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "funnel.toml"
    path.write_text(
        'format = 1\nretrieved = 60\nranked = 30\n[light]\npopularity = 0.3\nfreshness = 0.2\nhalf_life_days = 3\n'
        '[labels]\nclick = 1\nsave = 0.5\n[slate]\nlength = 10\nwindow = 4\n'
        '[[slate.terms]]\nkind = "volume"\nweight = 0.3\n'
        '[[slate.terms]]\nkind = "prefix_overlap"\nweight = 0.1\ncolumns = ["item_category"]\n'
    )  # fmt: skip
    assert load_funnel_config(path) == CONFIG
    assert load_funnel_config(path).fingerprint == CONFIG.fingerprint != FunnelConfig().fingerprint
    for text, message in (
        ("format = 2", "format = 1 required, found 2"),
        ("format = 1\nretrieve = 3", "found retrieve"),
        ("format = 1\nranked = 50.5", "ranked of at least 1, a whole number, required, found 50.5"),
        ("format = 1\n[labels]\nclick = nan", "a finite weight of click required, found nan"),
        ("format = 1\n[slate]\nlength = 2.5", "length of at least 1, a whole number, required, found 2.5"),
        ("format = 1\nretrieved = 10", "1 <= ranked <= retrieved required, found 100 and 10"),
        ("format = 1\nranked = 10", "a slate of at most ranked = 10 required, found 25"),
        ("format = 1\n[light]\npopularity = -1", "a weight popularity of at least 0 required"),
        ("format = 1\n[light]\nboost = 1", "boost"),
        ("format = 1\n[slate]\nlength = 5\nwidth = 3", "found width"),
        ("format = 1\nlight = 3", r"funnel.toml: a table \[light\] required, found 3"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_funnel_config(path)
    with pytest.raises(ValueError, match="missing/funnel"):
        load_funnel_config(tmp_path / "missing" / "funnel.toml")


def test_the_configuration_of_the_guide_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    (tmp_path / "funnel.toml").write_text(text)
    config = load_funnel_config(tmp_path / "funnel.toml")
    assert (config.retrieved, config.ranked, config.slate.length) == (500, 100, 25)
    assert config.labels == (("click", 1.0), ("save", 0.5))


def test_columns_and_labels_that_are_not_there_are_named():
    items = all_items()
    bare = SimpleNamespace(items=ItemVectors.of(items.item_id, items.vectors), users=NO_STORE)
    with pytest.raises(ValueError, match="item columns count, first_seen, item_category required, found none"):
        Recommender(bare, ByCategory(), CONFIG)
    with pytest.raises(ValueError, match=r"labels of the ranking model .click, save. required, found buy"):
        recommender(FunnelConfig(labels=(("buy", 1.0),)))
