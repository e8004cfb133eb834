"""What comes over HTTP is what the model computes in process, bit for bit, whichever body carried it."""

from __future__ import annotations

import dataclasses

import numpy as np
import orjson
import pyarrow as pa
import pytest

from reqdedup.models.bundle import Bundle
from reqdedup.serving.client import ServerError
from reqdedup.serving.requests import ItemFilter, RankRequest, RecommendRequest, RetrieveRequest
from tests.serving.http.servers import stacked

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("body", ["json", "arrow"])
def test_rows_of_the_table_get_the_bits_of_the_model_with_their_histories_sent(server, table_requests, body):
    client = server.client(body=body)
    for one in table_requests[:25]:
        ranked = client.rank(one.sent)
        assert stacked(ranked).tobytes() == one.logits.tobytes()
        assert (ranked.end, ranked.marks) == (one.sent.history.end, ())


@pytest.mark.slow
def test_rows_of_the_table_get_the_bits_of_the_model_with_their_histories_stored(server, table_requests):
    client = server.client()
    last = [one for one in table_requests if one.is_last][:25]
    origins = set()
    for _ in range(2):
        for one in last:
            ranked = client.rank(RankRequest(user_id=one.sent.user_id, candidates=one.sent.candidates))
            assert stacked(ranked).tobytes() == one.logits.tobytes()
            origins.add(ranked.context)
    assert origins >= {"kept"}


def test_a_wrong_window_or_a_forgotten_feature_changes_the_bits_or_is_refused(server, table_requests):
    """The comparison above can fail: what it would miss if it could not."""
    client = server.client()
    one = next(one for one in table_requests if one.is_last and len(one.sent.history.columns["item_id"]) > 5)
    right = RankRequest(user_id=one.sent.user_id, candidates=one.sent.candidates)
    earlier = dataclasses.replace(right, at=one.sent.history.end - 1)
    assert stacked(client.rank(earlier)).tobytes() != one.logits.tobytes()
    count = {"recent_event_count": one.sent.request["recent_event_count"] + 1}
    assert stacked(client.rank(dataclasses.replace(right, request=count))).tobytes() != one.logits.tobytes()
    swapped = dict(one.sent.candidates, item_category=one.sent.candidates["item_category"] + 1)
    assert stacked(client.rank(dataclasses.replace(right, candidates=swapped))).tobytes() != one.logits.tobytes()
    without = {name: value for name, value in one.sent.request.items() if name != "device"}
    unknown = dataclasses.replace(one.sent, user_id=-5, request=without)
    with pytest.raises(ServerError, match="device") as refused:
        client.rank(unknown)
    assert refused.value.status == 422


def test_an_open_inference_call_gets_the_same_bits(server, table_requests):
    one = next(one for one in table_requests if one.is_last)
    types = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}
    tensors, tail = [{"name": "user_id", "shape": [1], "datatype": "INT64", "data": [one.sent.user_id]}], b""
    for name, values in one.sent.candidates.items():
        size = {"binary_data_size": values.nbytes}
        tensors.append({"name": name, "shape": [len(values)], "datatype": types[values.dtype.name], "parameters": size})
        tail += values.tobytes()
    head = orjson.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
    client = server.client()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    response, data = client._exchange(server.url, "/v2/models/ranking/infer", head + tail, headers)
    length = int(response.headers["inference-header-content-length"])
    outputs = orjson.loads(data[:length])["outputs"]
    logits = np.frombuffer(data[length:], np.float32).reshape(len(outputs), -1).T
    assert logits.tobytes() == one.logits.tobytes()
    named = orjson.loads(client.get("/v2/models/ranking"))
    assert [output["name"] for output in outputs] == [output["name"] for output in named["outputs"]]
    (version,) = named["versions"]
    path = f"/v2/models/ranking/versions/{version}"
    assert client._exchange(server.url, f"{path}/infer", head + tail, headers)[1] == data
    assert orjson.loads(client.get(path)) == named
    response, data = client._exchange(server.url, "/v2/models/ranking/versions/zzz/infer", head + tail, headers)
    assert (response.status, orjson.loads(data)["error"]["required"]) == (404, version)


def test_retrieval_over_http_is_exact_search_with_the_vectors_of_the_bundle(server, table_requests, trained_bundles):
    bundle, client = Bundle.load(trained_bundles.retrieval), server.client()
    one = next(one for one in table_requests if one.is_last)
    deny = bundle.items.item_id_V[:50]
    request = RetrieveRequest(user_id=one.sent.user_id, k=20, filter=ItemFilter(deny=deny))
    found = client.retrieve(request)
    stored = client.retrieve(dataclasses.replace(request, history=one.sent.history, request=one.sent.request))
    np.testing.assert_array_equal(found.item_id, stored.item_id)
    assert found.score.tobytes() == stored.score.tobytes()
    assert not set(found.item_id) & set(deny)
    assert (np.diff(found.score) <= 0).all()
    state_D = bundle.model.user_state(one.batch.history)
    user_D = bundle.model.user_head(state_D[None], one.batch.request)[0].detach().numpy()
    rows = bundle.items.positions(found.item_id)
    np.testing.assert_allclose(bundle.item_vectors[rows] @ user_D, found.score, rtol=1e-4, atol=1e-5)


def test_the_funnel_answers_with_items_and_what_every_step_took(server, table_requests):
    one = next(one for one in table_requests if one.is_last)
    answer = server.client().recommend(RecommendRequest(user_id=one.sent.user_id, length=5, explains=True))
    assert len(answer["items"]) == 5
    assert {step["name"] for step in answer["steps"]} == {"retrieval", "light_ranking", "ranking", "reranking"}
    assert set(answer["items"][0]["logits"]) == {"click", "save", "long_dwell"}
    assert answer["items"][0]["contributions"]


def test_the_arrow_answer_is_chosen_by_the_accept_header(server, table_requests):
    one = next(one for one in table_requests if one.is_last)
    columns = {name: values.tolist() for name, values in one.sent.candidates.items()}
    body = orjson.dumps({"user_id": one.sent.user_id, "candidates": columns})
    arrow = "application/vnd.apache.arrow.stream"
    headers = {"content-type": "application/json", "accept": arrow}
    response, data = server.client()._exchange(server.url, "/v1/rank", body, headers)
    assert response.headers["content-type"] == arrow
    table = pa.ipc.open_stream(data).read_all()
    assert np.stack([column.to_numpy() for column in table.columns], axis=1).tobytes() == one.logits.tobytes()
