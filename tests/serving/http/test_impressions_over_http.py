"""What a server shows and what is clicked becomes labelled rows."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest

from reqdedup import storage
from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.serving.impressions.attribution import collect_impressions, mature_impressions
from reqdedup.storage import Layout, TableSource
from tests.serving.http.servers import Server


def post(server, path, body):
    request = urllib.request.Request(
        f"{server.url}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.slow
def test_a_click_through_http_becomes_a_label_and_what_was_not_clicked_is_negative_once_mature(
    catalog, trained_bundles, tmp_path
):
    source = TableSource(trained_bundles.main)
    store = SqliteStore(tmp_path / "store.sqlite", event_columns(source.schema))
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    user = source.to_arrow(["user_id"]).column("user_id")[0].as_py()
    words = ("--store", store.path, "--impressions", tmp_path / "log")
    with Server(trained_bundles.ranking, trained_bundles.retrieval, *words) as server:
        status, answer = post(server, "/v1/recommend", {"user_id": user, "length": 4})
        assert status == 200, answer
        liked = answer["items"][2]["item_id"]
        events = {name: [liked if name == "item_id" else 1] for name in store.columns}
        click = {"user_id": user, "events": events, "idempotency_key": "a", "labels": ["click"]}
        click["request_id"] = answer["request_id"]
        click["event_ts"] = time.time_ns() // 1000
        of_another = click | {"user_id": user + 1, "idempotency_key": "b"}
        other = answer["items"][1]["item_id"]
        of_another["events"] = {**events, "item_id": [other]}
        assert post(server, "/v1/events", of_another)[0] == 200
        for _ in range(2):  # sent twice
            assert post(server, "/v1/events", click)[0] == 200
        for wrong in (
            {"request_id": "7x"},
            {"labels": []},
            {"labels": "click"},
            {"labels": ["click", "clik"]},
            {"request_id": None},
            {"event_ts": 1.5},
        ):
            status, said = post(server, "/v1/events", {**click, **wrong})
            assert status == 422, said
        metrics = urllib.request.urlopen(f"{server.url}/metrics", timeout=30).read().decode()
        assert "reqdedup_impressions_dropped_total 0" in metrics
    catalog.create_namespace("feed")
    raw = storage.create_table(catalog, "feed.raw_engagements", source.schema, Layout.ARRIVAL)
    report = collect_impressions(tmp_path / "log", catalog, "feed")
    assert (report.num_impressions, report.num_clicks) == (1, 3)
    assert mature_impressions(catalog, "feed", raw, store).num_young == 1
    assert TableSource(catalog.load_table("feed.raw_engagements")).num_rows == 0
    report = mature_impressions(catalog, "feed", raw, store, now_s=time.time() + 2 * 86_400)
    assert (report.num_rows, report.num_clicked, report.num_foreign) == (4, 1, 1), report
    rows = (
        TableSource(catalog.load_table("feed.raw_engagements")).to_arrow(["item_id", "click", "position"]).to_pylist()
    )
    assert [row["item_id"] for row in rows] == [item["item_id"] for item in answer["items"]]
    assert [row["click"] for row in rows] == [0, 0, 1, 0]


@pytest.mark.slow
def test_clicks_on_impressions_are_refused_by_a_server_that_logs_none(server):
    body = {"user_id": 1, "events": {}, "idempotency_key": "a", "request_id": "5", "labels": ["click"]}
    status, said = post(server, "/v1/events", body)
    assert status == 422, said
