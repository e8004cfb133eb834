"""Events wait for the store in a bounded queue."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter

import numpy as np
import pytest

from reqdedup.schema import Column, Level
from reqdedup.serving.limits import Limits
from reqdedup.serving.scheduler import Scheduler
from reqdedup.serving.server.app import MAX_APPENDING, Application, Service
from reqdedup.serving.server.metrics import Metrics
from reqdedup.serving.server.swap import Models, Served
from tests.sequences.plain_store import PlainStore


class StuckStore(PlainStore):
    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def append(self, *args, **options):
        assert self.goes_on.wait(10)
        return super().append(*args, **options)


async def post(app, path: str, values: object) -> int:
    body, statuses = json.dumps(values).encode(), []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
    return statuses[0]


@pytest.mark.slow
def test_events_beyond_what_may_wait_for_a_stuck_store_are_refused_and_the_rest_is_appended():
    store, num_refused = StuckStore(), 9
    columns = {name: Column(name=name, dtype=dtype, level=Level.REQUEST) for name, dtype in store.columns.items()}
    events = {name: np.ones(1, dtype).tolist() for name, dtype in store.columns.items()}

    async def ask(app) -> Counter:
        asked = [
            asyncio.ensure_future(
                post(app, "/v1/events", {"user_id": 7, "events": events, "idempotency_key": str(number)})
            )
            for number in range(MAX_APPENDING + num_refused)
        ]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert {one.result() for one in done} == {503}
        store.goes_on.set()
        return Counter([await one for one in asked])

    with Scheduler() as scheduler:
        models = Models(lambda bundle, served: served, Served(parts={}), scheduler)
        service = Service(
            models=models, scheduler=scheduler, limits=Limits(), metrics=Metrics(), store=store, event_columns=columns
        )
        application = Application(service)
        assert asyncio.run(ask(application)) == {200: MAX_APPENDING, 503: num_refused}
        application.close()
    assert store.end(7).end == MAX_APPENDING
