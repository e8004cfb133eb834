"""Good bodies of every call, and each of them with one of its values in the place of another kind of thing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WRONG = ({}, [], [{}], [[1]], {"a": {}}, "", "a" * 5000, -1, 1.5, 2**63, True, None)


def with_one_wrong(value: Any) -> Iterator[Any]:
    """The value itself, then each of those in it, of lists the first, replaced by each of `WRONG`."""
    yield from WRONG
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from ({**value, name: other} for other in with_one_wrong(inner))
    elif isinstance(value, list) and value:
        yield from ([other, *value[1:]] for other in with_one_wrong(value[0]))


def bodies(user_id: int, candidates: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """By path. None of events would be appended, nor would one of models change them unless `to` is
    null: that is what served before."""
    of_user = {"user_id": user_id, "request": {"device": 1}, "at": None, "version": None, "deadline_ms": 5000.0}
    items = {"allow": [1], "deny": [2], "unseen": True, "categories": {"item_category": [1]}}
    events = {"item_id": [1], "action": [1, 2]}  # of two lengths
    history = {"columns": events, "start": 0, "end": 1, "version": 0}
    shown = {"request_id": "1", "labels": ["click"], "event_ts": 1}
    tensors = [
        {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [user_id], "parameters": {}},
        *({"name": name, "shape": [len(x)], "datatype": "INT64", "data": x} for name, x in candidates.items()),
    ]
    protocol = {"id": "1", "inputs": tensors, "outputs": [{"name": "click", "parameters": {}}], "parameters": {}}
    return {
        "/v1/rank": [{**of_user, "history": history, "candidates": candidates}],
        "/v1/retrieve": [{**of_user, "k": 3, "filter": items}],
        "/v1/recommend": [{**of_user, "length": 3, "explain": True, "filter": items}],
        "/v1/events": [{"user_id": user_id, "events": events, "idempotency_key": "a"} | more for more in ({}, shown)],
        "/v1/models": [
            {"action": "load", "bundle": "not there"},
            {"action": "", "bundle": "", "to": {}},
            {"action": "rollback", "to": {"ranking": "not there"}},
            {"action": "promote", "bundle": "", "to": {"ranking": "not there"}},
        ],
        "/v2/models/ranking/infer": [protocol],
    }
