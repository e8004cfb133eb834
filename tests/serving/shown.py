"""A small feed: a table in order of arrival, a store with users, and impressions of it."""

from __future__ import annotations

import numpy as np

from reqdedup import storage
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import events_digest
from reqdedup.serving.impressions.log import Impression
from reqdedup.storage import Layout

COLUMNS = {"item_id": "int64", "action": "int32"}
NOW_S = 1_800_000_000
HOUR_US = 3_600_000_000


def feed_schema() -> EngagementSchema:
    def column(name, dtype, level, **options):
        return Column(name=name, dtype=dtype, level=level, doc=name, **options)

    return EngagementSchema(
        (
            column("user_id", "int64", Level.KEY),
            column("request_id", "int64", Level.KEY),
            column("item_id", "int64", Level.KEY),
            column("request_ts", "timestamp", Level.REQUEST),
            column("history_end", "int64", Level.REQUEST),
            column("timeline_version", "int32", Level.REQUEST),
            column("history_item_id", "int64", Level.REQUEST, kind=Kind.SEQUENCE),
            column("history_action", "int32", Level.REQUEST, kind=Kind.SEQUENCE),
            column("user_embedding", "float32", Level.REQUEST, kind=Kind.VECTOR, width=3),
            column("device", "int32", Level.REQUEST),
            column("country", "string", Level.REQUEST, nullable=True),
            column("item_category", "int32", Level.ITEM),
            column("position", "int32", Level.ITEM),
            column("click", "int32", Level.LABEL, nullable=True),
            column("save", "int32", Level.LABEL, nullable=True),
        )
    )


def raw_table(catalog):
    catalog.create_namespace("feed")
    return storage.create_table(catalog, "feed.raw_engagements", feed_schema(), Layout.ARRIVAL)


def store_of_users(path, lengths):
    store = SqliteStore(path, COLUMNS)
    for user, length in enumerate(lengths):
        numbers = np.arange(length, dtype=np.int64)
        events = {"item_id": numbers * 3 + user, "action": (numbers % 4).astype(np.int32)}
        store.append(user, events, key=f"first {user}")
    return store


def impression_of(store, user, request_id, *, num_candidates=5, num_shown=3, hours_ago=48.0, start=0):
    window = store.window(user, list(COLUMNS), start_of=lambda end: min(start, end))
    item_id = np.arange(num_candidates, dtype=np.int64) * 7 + request_id
    return Impression(
        request_id=request_id,
        request_ts=int(NOW_S * 1e6 - hours_ago * HOUR_US),
        user_id=user,
        start=window.start,
        history_end=window.end,
        timeline_version=window.version,
        model="m1",
        definition="d1",
        rerank="r1",
        history_digest=events_digest(window.columns).hex(),
        item_id=item_id,
        score=np.linspace(0, 1, num_candidates),
        logits={"click": np.linspace(-1, 1, num_shown, dtype=np.float32)},
        slate=item_id[::-1][:num_shown].copy(),
        request={
            "device": user % 3,
            "user_embedding": np.array([0.1, user, -1], np.float32),
            "country": None,
            "recent_event_count": 4,
        },
        items={"item_category": (item_id % 9).astype(np.int32)},
    )
