"""An early ranker as light ranking: its step is the model over a batch of the retrieved items, in a server too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup.models import EarlyRankerConfig
from reqdedup.models.bundle import Bundle, write_bundle
from reqdedup.models.registry import build_model
from reqdedup.models.signature import Signature
from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.funnel.config import FunnelConfig, LightRanking
from reqdedup.serving.funnel.light_model import LightModel
from reqdedup.serving.funnel.recommender import Recommender
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import ItemFilter, RecommendRequest, RetrieveRequest
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.scheduler import Scheduler
from reqdedup.serving.server.loading import Loader
from reqdedup.serving.server.settings import ServeSettings
from reqdedup.serving.server.swap import Models
from reqdedup.serving.wire.answers import recommended_answer
from reqdedup.storage import TableSource
from tests.serving.conftest import SIZES

CONFIG = FunnelConfig(retrieved=200, ranked=30, labels=(("click", 1.0), ("save", 0.5)))


def fresh(trained_bundles, folder, *, seed=0, **sizes):
    """An early ranker's bundle in the folder: fresh weights order items as well as any."""
    torch.manual_seed(seed)
    schema = trained_bundles.source.schema
    config = EarlyRankerConfig.from_schema(schema, output_width=8, head_widths=(8,), **{**SIZES, **sizes})
    model = build_model(config)
    for norm in model.head.norms:
        norm.running_mean.normal_()
    items, signature = Bundle.load(trained_bundles.ranking).items, Signature.of(config, schema)
    return write_bundle(folder, config=config, weights=model.state_dict(), signature=signature, items=items)


@pytest.fixture(scope="module")
def early(trained_bundles, tmp_path_factory):
    return fresh(trained_bundles, tmp_path_factory.mktemp("early") / "bundle")


@pytest.fixture(scope="module")
def place(trained_bundles, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "users.db"
    store = SqliteStore(path, event_columns(TableSource(trained_bundles.main).schema))
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    yield path, store
    store.close()


@pytest.fixture(scope="module")
def recommender(trained_bundles, early, place):
    retriever = Retriever.of(Bundle.load(trained_bundles.retrieval), store=place[1])
    ranker = Ranker.of(Bundle.load(trained_bundles.ranking), store=place[1])
    light = LightModel(Bundle.load(early), retriever.items, store=place[1])
    return Recommender(retriever, ranker, CONFIG, light=light, now_s=lambda: 1.8e9)


@pytest.fixture(scope="module")
def users(trained_bundles):
    return np.unique(trained_bundles.main.scan(selected_fields=("user_id",)).to_arrow()["user_id"]).tolist()[:4]


def test_what_is_ranked_are_the_best_of_the_model_over_all_that_was_retrieved(recommender, early, users):
    bundle, items = Bundle.load(early), recommender.retriever.items
    differed = 0
    for user_id in users:
        found = recommender.recommend(RecommendRequest(user_id=user_id, explains=True))
        retrieved = recommender.retriever.retrieve(RetrieveRequest(user_id=user_id, k=200))
        window, features, _ = recommender.light._users._inputs.user(RetrieveRequest(user_id=user_id, k=1))
        row = np.searchsorted(items.item_id, retrieved.item_id)
        columns = {name: values[row] for name, values in items.columns.items()}
        batch = bundle.transforms.batch(
            request=features,
            history=window.columns,
            candidates={"item_id": retrieved.item_id, **columns},
            history_end=window.end,
        )
        chance = torch.sigmoid(bundle.model.predict(batch).double()).numpy()
        weights = [dict(CONFIG.labels).get(label, 0.0) for label in bundle.signature.outputs]
        score = dict(zip(retrieved.item_id.tolist(), chance @ weights, strict=True))
        chosen = [score.pop(item) for item in found.ranked_item_id.tolist()]
        assert chosen == sorted(chosen, reverse=True)
        assert min(chosen) >= max(score.values()) - 1e-6
        differed += set(found.ranked_item_id) != set(retrieved.item_id[:30])
        (step,) = [step for step in found.steps if step.name == "light_ranking"]
        assert (step.received, step.passed, step.seconds > 0) == (200, 30, True)
        assert recommended_answer(found)["models"]["light_ranking"] == bundle.fingerprint
    assert differed


@pytest.fixture(scope="module")
def loaded(trained_bundles, early, place, tmp_path_factory):
    """A server's loader, and what it serves at the start."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "funnel.toml").write_text(
        f'format = 1\nretrieved = 200\nranked = 30\n[light]\nbundle = "{early}"\n[labels]\nclick = 1.0\nsave = 0.5\n'
    )
    bundles = (str(trained_bundles.ranking), str(trained_bundles.retrieval))
    files = {"funnel": str(folder / "funnel.toml"), "serving": str(folder / "serving.json")}
    loader = Loader(ServeSettings(bundles=bundles, store=str(place[0]), **files))
    return loader, loader.start()[0]


@pytest.mark.slow
def test_a_server_composes_the_slates_of_the_process(recommender, loaded, users):
    _, served = loaded
    for user_id, (found,) in [(user, served.recommend([RecommendRequest(user_id=user)])) for user in users]:
        expected = recommender.recommend(RecommendRequest(user_id=user_id))
        assert found.item_id.tolist() == expected.item_id.tolist()
        assert found.ranked_score.tobytes() == expected.ranked_score.tobytes()
        assert (found.funnel, found.light_model) == (expected.funnel, expected.light_model)


@pytest.mark.slow
def test_a_light_model_is_swapped_with_the_funnel_over_it_and_comes_back(
    loaded, trained_bundles, early, users, tmp_path
):
    loader, first = loaded
    other = fresh(trained_bundles, tmp_path / "other", seed=1)
    fewer = fresh(trained_bundles, tmp_path / "fewer", labels=("save",))
    with Scheduler() as scheduler:
        models = Models(loader.put, first, scheduler, changed=loader.changed)

        def answer():
            (found,) = models.current.recommend([RecommendRequest(user_id=users[0])])
            assert found.light_model == models.current.fingerprints["light_ranking"]
            return found.light_model, found.funnel, found.ranked_item_id.tolist()

        before = answer()
        models.load(str(other))
        swapped = answer()
        assert [one == two for one, two in zip(before, swapped, strict=True)] == [False] * 3
        assert {**first.fingerprints, "light_ranking": swapped[0]} == models.current.fingerprints
        with pytest.raises(ValueError, match="light: a model of the label click required"):
            models.load(str(fewer))
        assert answer() == swapped
        current, previous, _ = models.folders  # what a worker that is started again is told
        assert str(other) in current
        assert str(early) in previous
        models.rollback()
        assert answer() == before


def test_light_ranking_by_another_kind_of_model_is_refused_at_the_start(trained_bundles, tmp_path):
    (tmp_path / "funnel.toml").write_text(f'format = 1\n[light]\nbundle = "{trained_bundles.retrieval}"\n')
    loader = Loader(ServeSettings(bundles=(str(trained_bundles.ranking),), funnel=str(tmp_path / "funnel.toml")))
    with pytest.raises(ValueError, match="an early ranker, required for light ranking, found retrieval"):
        loader.start()


def test_which_light_model_it_was_is_part_of_the_funnel(recommender, early):
    plain = Recommender(recommender.retriever, recommender.ranker, CONFIG)
    assert plain.fingerprint == CONFIG.fingerprint != recommender.fingerprint
    assert plain.recommend(RecommendRequest(user_id=1)).light_model is None
    named = replace(CONFIG, light=LightRanking(bundle=str(early)))
    assert named.fingerprint == CONFIG.fingerprint, "where it lies does not matter"
    nothing = ItemFilter(deny=recommender.retriever.items.item_id)
    assert not len(recommender.recommend(RecommendRequest(user_id=1, filter=nothing)).item_id)
    with pytest.raises(ValueError, match=f"the light model of {early} required, found none"):
        Recommender(recommender.retriever, recommender.ranker, named)


def test_what_does_not_fit_is_refused(recommender, trained_bundles):
    with pytest.raises(ValueError, match="an early ranker required for light ranking, found dcat"):
        LightModel(Bundle.load(trained_bundles.ranking), recommender.retriever.items)
    with pytest.raises(ValueError, match="light: a model of the label click required"):
        CONFIG.check_light(("save",), ["click"])
