"""Serve, log, label, train again: the funnel of trained models, its impressions, and the rows that come of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from reqdedup import storage
from reqdedup.models.bundle import Bundle
from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import StoreUnavailableError, Window
from reqdedup.serving.funnel.config import FunnelConfig
from reqdedup.serving.funnel.logged import UNKNOWN, LoggedRecommender
from reqdedup.serving.funnel.recommender import Recommender
from reqdedup.serving.impressions.attribution import collect_impressions, impressions_of, mature_impressions
from reqdedup.serving.impressions.log import Click, ImpressionLog, read_log, sealed_files
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import RankRequest, RecommendRequest
from reqdedup.serving.retrieval.item_vectors import ItemVectors
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.storage import Layout, TableSource


def soon_after(source):
    """A minute after the log's last request [seconds since 1970]: its events are recent then."""
    return 60 + max(one.timestamp() for one in source.to_arrow(["request_ts"])["request_ts"].to_pylist())


@pytest.fixture
def served(trained_bundles, tmp_path):
    """Recommender with its log, the ranker behind it, the store."""
    source = TableSource(trained_bundles.main)
    store = SqliteStore(tmp_path / "store.sqlite", event_columns(source.schema))
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    retrieval, ranking = Bundle.load(trained_bundles.retrieval), Bundle.load(trained_bundles.ranking)
    of_bundle = Retriever.of(retrieval).items
    # The model reads the place in the list, which nobody knows before there is one.
    columns = {**of_bundle.columns, "position": np.zeros(len(of_bundle), np.int32)}
    items = ItemVectors.of(of_bundle.item_id, of_bundle.vectors, columns, of_bundle.keys)
    retriever = Retriever(retrieval.model, retrieval.transforms, items, fingerprint=retrieval.fingerprint, store=store)
    ranker = Ranker(
        ranking.model, ranking.transforms, fingerprint=ranking.fingerprint, store=store, items=retriever.items
    )
    funnel = Recommender(retriever, ranker, FunnelConfig(retrieved=60, ranked=30))
    log = ImpressionLog(tmp_path / "log")
    recommender = LoggedRecommender(funnel, log, now_s=lambda: soon_after(source))
    yield recommender, ranker, store, source
    log.close()
    store.close()


@pytest.mark.slow
def test_what_was_recommended_becomes_rows_with_the_scores_that_were_served(catalog, served, tmp_path):
    recommender, ranker, store, source = served
    now_s = soon_after(source)
    users = np.unique(source.to_arrow(["user_id"]).column("user_id").to_numpy())[:12].tolist()
    answers = [recommender.recommend(RecommendRequest(user_id=user, length=5)) for user in users]
    assert len({answer.request_id for answer in answers}) == len(users)
    log = recommender.log
    liked = answers[3]
    log.click(
        Click(
            request_id=liked.request_id,
            item_id=int(liked.item_id[1]),
            event_ts=int(now_s * 1e6) + 5,
            label=source.schema.labels[0].name,
        )
    )
    for user in users:  # what comes later must not be seen
        events = {name: np.ones(2, dtype) for name, dtype in store.columns.items()}
        store.append(user, events, key=f"later {user}")
    log.close()
    assert log.counts().dropped == 0
    catalog.create_namespace("feed")
    raw = storage.create_table(catalog, "feed.raw_engagements", source.schema, Layout.ARRIVAL)
    collect_impressions(tmp_path / "log", catalog, "feed")
    assert mature_impressions(catalog, "feed", raw, store, now_s=now_s).num_young == len(users)
    report = mature_impressions(catalog, "feed", raw, store, now_s=now_s + 2 * 86_400)
    assert (report.num_requests, report.num_rows, report.num_clicked) == (len(users), 5 * len(users), 1), report
    rows = TableSource(catalog.load_table("feed.raw_engagements")).to_arrow().to_pylist()
    positive = [(r["request_id"], r["item_id"]) for r in rows if r[source.schema.labels[0].name]]
    assert positive == [(liked.request_id, int(liked.item_id[1]))]
    shown = {one.request_id: one for one in impressions_of(catalog.load_table("feed.impressions").scan().to_arrow())}
    counted = []
    for user, answer in zip(users, answers):
        mine = sorted(
            (r for r in rows if r["request_id"] == answer.request_id),
            key=lambda r: answer.item_id.tolist().index(r["item_id"]),
        )
        assert [row["item_id"] for row in mine] == answer.item_id.tolist()
        impression = shown[answer.request_id]
        assert impression.score.tobytes() == answer.ranked_score.astype(np.float64).tobytes()
        # The row's own history and columns, and of the side table what was logged: equal bits again, as long as all the
        # candidates are scored together.
        row, schema = mine[0], source.schema
        history = {
            column.name.removeprefix("history_"): np.array(row[column.name], column.dtype)
            for column in schema.sequences
        }
        known = {c.name: row[c.name] for c in schema.request_columns if c.name in impression.request}
        start, end = row["history_end"] - len(row["history_item_id"]), row["history_end"]
        again = ranker.rank(
            RankRequest(
                user_id=user,
                candidates={"item_id": impression.item_id, **impression.items},
                request={**impression.request, **known},
                history=Window(history, start, end, row["timeline_version"]),
            )
        )
        place = [impression.item_id.tolist().index(item) for item in answer.item_id.tolist()]
        for label, logits in answer.logits.items():
            assert again.logits[label][place].tobytes() == logits.tobytes()
            assert impression.logits[label].tobytes() == logits.tobytes()
        # What was computed at the request is what the backfill computes of the row; of the last fill it is not.
        counted.append(impression.request["recent_event_count"])
        age_us = [row["request_ts"].timestamp() * 1e6 - 1000 * ts for ts in row["history_ts"]]
        assert counted[-1] == sum(0 < age <= 86_400e6 for age in age_us)
    stored = [store.request_features(user, ["recent_event_count"])["recent_event_count"] for user in users]
    assert any(counted)
    assert counted != stored


@pytest.mark.parametrize(("seconds_late", "is_logged"), [(3599, True), (3601, False), (-59, True), (-61, False)])
def test_an_answer_as_of_another_moment_is_no_impression(served, tmp_path, seconds_late, is_logged):
    recommender, _, _, source = served
    user_id = int(source.to_arrow(["user_id"]).column("user_id")[0].as_py())
    request_ts = int((soon_after(source) - seconds_late) * 1e6)
    answer = recommender.recommend(RecommendRequest(user_id=user_id, length=5, request={"request_ts": request_ts}))
    assert len(answer.item_id) == 5
    assert (answer.request_id is not None) == is_logged
    recommender.log.close()
    assert sum(path.stat().st_size > 0 for path in (tmp_path / "log").iterdir()) == is_logged


@pytest.mark.slow
def test_a_history_of_the_request_s_own_gives_rows_if_the_store_has_the_same_events(catalog, served, tmp_path):
    """Compared by the columns that the request brought; one that the store does not have is counted."""
    recommender, _, store, source = served
    user = int(source.to_arrow(["user_id"]).column("user_id")[0].as_py())
    held = store.window(user, list(store.columns), start_of=lambda _: 0)
    brought = {name: held.columns[name] for name in ("item_id", "action", "ts")}
    same = Window(brought, held.start, held.end, held.version)
    other = Window({**brought, "item_id": brought["item_id"] + 1}, held.start, held.end, held.version)
    none = Window({name: np.arange(4).astype(store.columns[name]) for name in brought}, 0, 4, 9)
    answers = [recommender.recommend(RecommendRequest(user_id=user, length=5, history=x)) for x in (same, other, none)]
    recommender.log.close()
    catalog.create_namespace("feed")
    raw = storage.create_table(catalog, "feed.raw_engagements", source.schema, Layout.ARRIVAL)
    collect_impressions(tmp_path / "log", catalog, "feed")
    report = mature_impressions(catalog, "feed", raw, store, now_s=soon_after(source) + 2 * 86_400)
    assert (report.num_requests, report.num_own, report.num_changed, report.num_forgotten) == (1, 2, 0, 0)
    rows = TableSource(catalog.load_table("feed.raw_engagements")).to_arrow(["request_id", "history_item_id"])
    assert set(rows["request_id"].to_pylist()) == {answers[0].request_id}
    start = answers[0].start - held.start
    assert rows["history_item_id"][0].as_py() == held.columns["item_id"][start:].tolist()


def test_an_answer_without_the_store_is_logged_as_one_of_an_unknown_history(served, tmp_path, monkeypatch):
    recommender, _, store, source = served
    user = int(source.to_arrow(["user_id"]).column("user_id")[0].as_py())
    known = store.request_features(user, recommender.recommender.users.names)

    def fails(*_, **__):
        raise StoreUnavailableError("busy")

    monkeypatch.setattr(store, "fetch", fails)
    with pytest.raises(StoreUnavailableError, match="busy"):
        recommender.recommend(RecommendRequest(user_id=user, length=5, request=known))
    funnel = recommender.recommender
    funnel.users = dataclasses.replace(funnel.users, on_missing_history="empty")
    answer = LoggedRecommender(funnel, recommender.log).recommend(
        RecommendRequest(user_id=user, length=5, request=known)
    )
    assert answer.marks == ("history",)
    recommender.log.close()
    (path,) = sealed_files(tmp_path / "log")
    (impression,) = read_log(path).impressions
    assert impression.request.keys() == known.keys() | {"recent_event_count"}
    assert impression.history_digest == UNKNOWN
