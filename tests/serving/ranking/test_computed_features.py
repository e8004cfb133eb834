"""A feature that follows from the history is computed at the request, by the code that computed it for the table."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.dedup.encoding import blobs_from_numpy
from reqdedup.models.bundle import SIGNATURE, Bundle
from reqdedup.sequences.filling import RequestSource, event_columns, fill_store, user_records
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import Window, now_us
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import RankRequest, RequestError
from reqdedup.storage import TableSource, recent_event_counts

WINDOW_S = 24 * 3600
NAME = "recent_event_count"


@pytest.fixture(scope="module")
def store(trained_bundles, tmp_path_factory):
    columns = event_columns(TableSource(trained_bundles.main).schema)
    store = SqliteStore(tmp_path_factory.mktemp("store") / "users.db", columns)
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    yield store
    store.close()


@pytest.fixture(scope="module")
def ranker(trained_bundles, store):
    return Ranker.of(Bundle.load(trained_bundles.ranking), store=store)


@pytest.fixture(scope="module")
def user_ids(trained_bundles):
    return np.unique(trained_bundles.main.scan(selected_fields=("user_id",)).to_arrow()["user_id"]).tolist()[:8]


def offline(window, request_us):
    """What the backfill computes for a request with this history."""
    times = np.ascontiguousarray(window.columns["ts"])
    blobs = blobs_from_numpy(times, np.array([0, len(times)]))
    batch = pa.RecordBatch.from_pydict({
        "request_ts": pa.array([request_us], pa.timestamp("us", tz="UTC")),
        "history_ts": pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), blobs),
    })  # fmt: skip
    return recent_event_counts(WINDOW_S)(batch)[0].as_py()


def asked(user_id, **options):
    candidates = {"item_id": np.arange(1, 18), "item_category": np.arange(17) % 5, "position": np.arange(17)}
    return RankRequest(user_id=user_id, candidates=candidates, **options)


def bits(ranked):
    return {label: logits.tobytes() for label, logits in ranked.logits.items()}


def test_the_signature_says_what_is_computed_and_from_how_much_history(trained_bundles):
    signature = json.loads((trained_bundles.ranking / SIGNATURE).read_text())
    found = {one["name"]: one["computed"] for one in signature["inputs"] if "computed" in one}
    lengths = [len(one) for one in trained_bundles.source.to_arrow(["history_item_id"])["history_item_id"].to_pylist()]
    assert found == {NAME: {"window_s": WINDOW_S, "max_events": max(lengths)}}
    assert set(Bundle.load(trained_bundles.ranking).transforms.computed) == {NAME}


@pytest.mark.slow
def test_events_that_were_appended_count_as_they_do_offline_bit_for_bit(store, ranker, user_ids):
    rng = np.random.default_rng(0)
    longest, differed = ranker.transforms.computed[NAME].max_events, 0
    for user_id in user_ids:
        newest_ms = int(store.window(user_id, ["ts"], start_of=lambda _: 0).columns["ts"].max())
        request_us = (newest_ms + 3_600_000) * 1000
        num = int(rng.integers(1, 40))
        # On both edges of the day before the request, after it, and anywhere: histories follow arrival, not time.
        edges = [
            newest_ms + 3_600_000 - WINDOW_S * 1000,
            newest_ms + 3_600_000,
            newest_ms + 3_599_999,
            newest_ms - 9**11,
        ]
        events = {name: rng.integers(0, 4, num + 4).astype(dtype) for name, dtype in store.columns.items()}
        events["ts"] = np.array([*rng.integers(newest_ms - 2 * WINDOW_S * 1000, newest_ms + 7_200_000, num), *edges])
        store.append(user_id, events, key=f"more of {user_id}")
        window = store.window(user_id, list(store.columns), start_of=lambda end: max(0, end - longest))
        wanted = offline(window, request_us)
        found = ranker.rank(asked(user_id, request={"request_ts": request_us}))
        told = ranker.rank(asked(user_id, request={NAME: wanted}))
        assert bits(found) == bits(told)
        stored = store.request_features(user_id, [NAME])[NAME]
        if stored != wanted:
            differed += 1
            assert bits(found) != bits(ranker.rank(asked(user_id, request={NAME: stored})))
        own = ranker.rank(asked(user_id, request={"request_ts": request_us}, history=window))
        assert bits(own) == bits(told)
        without = Window(
            {n: x for n, x in window.columns.items() if n != "ts"}, window.start, window.end, window.version
        )
        with pytest.raises(RequestError, match=f"request.{NAME}: {NAME} required, .* its own history has no times"):
            ranker.rank(asked(user_id, history=without))
    assert differed >= len(user_ids) // 2


def test_a_user_without_a_history_has_done_nothing_and_now_is_the_time_of_who_says_none(store, ranker):
    brought = {"device": 1, "country": 1, "user_embedding": np.zeros(4, np.float32)}
    columns = {column.name for column in ranker.transforms.request_columns}
    request = {name: value for name, value in brought.items() if name in columns}
    missing = {c.name: 0 for c in ranker.transforms.request_columns if c.name not in request and c.name != NAME}
    nobody = asked(10**9, request={**request, **missing})
    assert bits(ranker.rank(nobody)) == bits(ranker.rank(asked(10**9, request={**request, **missing, NAME: 0})))
    ts = np.array([now_us() // 1000 - 1000, now_us() // 1000 - WINDOW_S * 2000])
    events = {name: np.ones(2, dtype) for name, dtype in store.columns.items()} | {"ts": ts}
    store.append(10**9 + 1, events, key="just now")
    somebody = asked(10**9 + 1, request={**request, **missing})
    told = asked(10**9 + 1, request={**request, **missing, NAME: 1})
    assert bits(ranker.rank(somebody)) == bits(ranker.rank(told))


def test_stored_features_that_are_older_than_the_limit_are_marked(trained_bundles, ranker, user_ids, tmp_path):
    bundle, main = Bundle.load(trained_bundles.ranking), trained_bundles.main
    user_id, request = user_ids[0], {"request_ts": now_us()}
    stored = [c.name for c in bundle.transforms.request_columns if c.name != NAME]
    assert ranker.rank(asked(user_id, request=request)).marks == ()
    store = SqliteStore(tmp_path / "old.db", event_columns(TableSource(main).schema))
    source = RequestSource(main, [trained_bundles.features])
    store.fill(user_records(source), source={}, as_of_us=now_us() - 3_600_000_000)
    older = Ranker.of(bundle, store=store, max_feature_age_s=3000)
    assert older.rank(asked(user_id, request=request)).marks == ("stale_features",)
    assert Ranker.of(bundle, store=store, max_feature_age_s=4000).rank(asked(user_id, request=request)).marks == ()
    brought = {**request, **store.request_features(user_id, stored)}
    assert older.rank(asked(user_id, request=brought)).marks == ()
    store.close()
