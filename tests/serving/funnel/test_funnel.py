"""The whole funnel over trained models and a filled store: every answer is put together from its parts' own answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reqdedup.arrays.windows import HistoryCut
from reqdedup.models.bundle import Bundle
from reqdedup.rerank import SlateConfig
from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.funnel.config import FunnelConfig, LightRanking
from reqdedup.serving.funnel.logged import LoggedRecommender
from reqdedup.serving.funnel.recommender import Recommender
from reqdedup.serving.impressions.log import ImpressionLog
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import ItemFilter, RankRequest, RecommendRequest, RetrieveRequest
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.storage import TableSource

CONFIG = FunnelConfig(
    retrieved=40,
    ranked=20,
    light=LightRanking(popularity=0.1, freshness=0.1),
    slate=SlateConfig.from_dict({
        "format": 1, "length": 8, "terms": [{"kind": "volume", "weight": 0.5}],
        "rules": [{"kind": "hard_spacing", "column": "item_category", "gap": 1}],
    }),
)  # fmt: skip


@pytest.fixture(scope="module")
def store(trained_bundles, tmp_path_factory):
    columns = event_columns(TableSource(trained_bundles.main).schema)
    store = SqliteStore(tmp_path_factory.mktemp("store") / "users.db", columns)
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    yield store
    store.close()


@pytest.fixture(scope="module")
def users(trained_bundles):
    return np.unique(trained_bundles.main.scan(selected_fields=("user_id",)).to_arrow()["user_id"]).tolist()[:12]


def make_recommender(trained_bundles, store, *, ranking_cut=None):
    retriever = Retriever.of(Bundle.load(trained_bundles.retrieval), store=store)
    bundle = Bundle.load(trained_bundles.ranking)
    transforms = bundle.transforms if ranking_cut is None else replace(bundle.transforms, cut=ranking_cut)
    ranker = Ranker(bundle.model, transforms, fingerprint=bundle.fingerprint, store=store)
    return Recommender(retriever, ranker, CONFIG, now_s=lambda: 1.8e9)


@pytest.fixture
def recommender(trained_bundles, store):
    return make_recommender(trained_bundles, store)


@pytest.mark.slow
def test_a_slate_is_made_of_the_parts_own_answers(recommender, users):
    for user_id in users:
        found = recommender.recommend(RecommendRequest(user_id=user_id, explains=True))
        retrieved = recommender.retriever.retrieve(RetrieveRequest(user_id=user_id, k=40))
        items = recommender.retriever.items
        row = np.searchsorted(items.item_id, found.ranked_item_id)
        ranked = recommender.ranker.rank(
            RankRequest(
                user_id=user_id,
                candidates={"item_id": found.ranked_item_id, "item_category": items.columns["item_category"][row]},
            )
        )
        assert set(found.item_id) <= set(found.ranked_item_id) <= set(retrieved.item_id)
        assert (len(found.item_id), len(found.ranked_item_id)) == (8, 20)
        at = {item: place for place, item in enumerate(found.ranked_item_id.tolist())}
        for label, logit_T in found.logits.items():
            assert logit_T.tobytes() == ranked.logits[label][[at[item] for item in found.item_id.tolist()]].tobytes()
        category_T = items.columns["item_category"][np.searchsorted(items.item_id, found.item_id)]
        assert (category_T[1:] == category_T[:-1]).sum() <= 1  # the rule gives way only if nothing else is left
        assert found.marks == ()
        assert (found.end, found.version) == (retrieved.end, retrieved.version)


class CountedStore:
    """A store that notes what it is asked for."""

    def __init__(self, store):
        self._store, self.asked = store, []

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*arguments, **options):
            self.asked.append(name)
            return found(*arguments, **options)

        return call


@pytest.mark.slow
def test_a_user_is_read_once_and_every_model_sees_what_it_would_read_itself(trained_bundles, users, store, tmp_path):
    counted = CountedStore(store)
    recommender = make_recommender(trained_bundles, counted, ranking_cut=HistoryCut(max_events=24, stride=5))
    for user_id in users:
        found = recommender.recommend(RecommendRequest(user_id=user_id, filter=ItemFilter(unseen=True)))
        with ImpressionLog(tmp_path / str(user_id)) as log:
            logged = LoggedRecommender(recommender, log).recommend(
                RecommendRequest(user_id=user_id, filter=ItemFilter(unseen=True))
            )
        assert counted.asked == ["fetch", "fetch"]
        retrieved = recommender.retriever.retrieve(
            RetrieveRequest(user_id=user_id, k=40, filter=ItemFilter(unseen=True))
        )
        items = recommender.retriever.items
        category = items.columns["item_category"][np.searchsorted(items.item_id, found.ranked_item_id)]
        ranked = recommender.ranker.rank(
            RankRequest(user_id=user_id, candidates={"item_id": found.ranked_item_id, "item_category": category})
        )
        assert set(found.ranked_item_id) <= set(retrieved.item_id)
        assert (found.start, found.end) == (ranked.start, ranked.end) == (logged.start, logged.end)
        assert ranked.end - ranked.start <= 24 < retrieved.end - retrieved.start + 24
        score = sum(1 / (1 + np.exp(-ranked.logits[label].astype(np.float64))) for label in list(ranked.logits)[:1])
        assert found.ranked_score.tobytes() == logged.ranked_score.tobytes() == score.tobytes()
        counted.asked.clear()


def test_the_same_bits_whatever_was_kept_and_new_events_change_the_answer(recommender, users, store):
    user_id = users[-1]
    first, again = (recommender.recommend(RecommendRequest(user_id=user_id)) for _ in range(2))
    assert (first.context, again.context) == ("computed", "kept")
    assert first.ranked_item_id.tolist() == again.ranked_item_id.tolist()
    assert first.ranked_score.tobytes() == again.ranked_score.tobytes()
    events = {name: np.ones(3, dtype) for name, dtype in store.columns.items()}
    end = store.append(user_id, events, key="three more")
    later = recommender.recommend(RecommendRequest(user_id=user_id))
    assert (later.end, later.context) == (end.end, "extended")
    earlier = recommender.recommend(RecommendRequest(user_id=user_id, at=first.end))
    assert earlier.ranked_item_id.tolist() == first.ranked_item_id.tolist()
    assert earlier.ranked_score.tobytes() == first.ranked_score.tobytes()
    assert later.ranked_score.tobytes() != first.ranked_score.tobytes()


def test_what_was_denied_never_comes_back(recommender, users):
    seen = recommender.recommend(RecommendRequest(user_id=users[0])).item_id
    found = recommender.recommend(RecommendRequest(user_id=users[0], filter=ItemFilter(deny=seen)))
    assert not set(found.item_id) & set(seen)
    categories = ItemFilter(categories={"item_category": np.array([3])}, deny=seen)
    few = recommender.recommend(RecommendRequest(user_id=users[0], filter=categories))
    items = recommender.retriever.items
    assert set(items.columns["item_category"][np.searchsorted(items.item_id, few.item_id)]) <= {3}
