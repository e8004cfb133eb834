"""Bodies: what is read from them has the bits that were sent, and what does not fit is refused with its column."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.arrays.windows import HistoryCut
from reqdedup.models.transforms import Transforms
from reqdedup.schema import Column, Kind, Level
from reqdedup.sequences.store import now_us
from reqdedup.serving.limits import Limits
from reqdedup.serving.names import ANSWER_KEY, REQUEST_KEY
from reqdedup.serving.requests import Ranked, RequestError
from reqdedup.serving.wire import arrow, bodies, oip
from reqdedup.serving.wire.answers import encode

REQUEST, ITEM = Level.REQUEST, Level.ITEM
TRANSFORMS = Transforms(
    columns=(
        Column(name="item_id", dtype="int64", level=Level.KEY),
        Column(name="history_item_id", dtype="int64", level=REQUEST, kind=Kind.SEQUENCE),
        Column(name="history_action", dtype="int32", level=REQUEST, kind=Kind.SEQUENCE),
        Column(name="hour", dtype="int32", level=REQUEST),
        Column(name="age", dtype="float32", level=REQUEST, nullable=True),
        Column(name="taste", dtype="float32", level=REQUEST, kind=Kind.VECTOR, width=3),
        Column(name="category", dtype="int32", level=ITEM),
        Column(name="price", dtype="float32", level=ITEM, nullable=True),
    ),
    cut=HistoryCut(max_events=8),
)
INPUTS, LIMITS = bodies.Inputs.of(TRANSFORMS), Limits(max_candidates=50, max_history=20)
GOOD = {
    "user_id": 7,
    "request": {"hour": 3, "age": None, "taste": [0.1, 2, -3.5]},
    "candidates": {"item_id": [4, -1, 2**63 - 1], "category": [1, 2, 3], "price": [0.5, None, 1]},
}


def asked(values):
    return bodies.rank_request(bodies.parse_object(json.dumps(values).encode()), INPUTS, LIMITS)


def changed(path, value):
    """GOOD with one value replaced, or left out if `value` is ...."""
    values = orjson.loads(orjson.dumps(GOOD))
    *folders, name = path.split(".")
    place = values
    for folder in folders:
        place = place[folder]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return values


def test_json_becomes_a_request_of_the_signatures_types():
    request = asked(GOOD).request
    assert request.user_id == 7
    assert request.request["hour"] == 3
    assert request.request["age"] is None
    np.testing.assert_array_equal(request.request["taste"], np.array([0.1, 2, -3.5], np.float32), strict=True)
    np.testing.assert_array_equal(request.candidates["item_id"], np.array([4, -1, 2**63 - 1]), strict=True)
    np.testing.assert_array_equal(request.candidates["category"], np.array([1, 2, 3], np.int32), strict=True)
    np.testing.assert_array_equal(request.candidates["price"], np.array([0.5, np.nan, 1], np.float32), strict=True)
    assert (request.history, request.at, request.version) == (None, None, None)


def test_columns_that_the_model_does_not_read_are_dropped_and_named():
    values = changed("request.unread", {"anything": 1})
    values["candidates"]["other"] = "x"
    found = asked(values)
    assert set(found.dropped) == {"unread", "other"}
    assert "other" not in found.request.candidates


def test_a_history_in_the_body_is_a_window():
    history = {"columns": {"item_id": [5, 6], "action": [0, 1]}, "start": 8, "end": 10, "version": 2}
    window = asked({**GOOD, "history": history}).request.history
    assert (window.start, window.end, window.version) == (8, 10, 2)
    np.testing.assert_array_equal(window.columns["action"], np.array([0, 1], np.int32), strict=True)


WRONG = [
    ("user_id", ..., "user_id"),
    ("user_id", "7", "user_id"),
    ("user_id", True, "user_id"),
    ("user_id", 7.0, "user_id"),
    ("user_id", 2**63, "user_id"),
    ("userid", 7, "userid"),
    ("request", [1], "request"),
    ("request.hour", 2**31, "request.hour"),
    ("request.hour", 1.5, "request.hour"),
    ("request.hour", None, "request.hour"),
    ("request.age", "old", "request.age"),
    ("request.age", 1e39, "request.age"),
    ("request.taste", [1, 2], "request.taste"),
    ("request.taste", [1, 2, None], "request.taste"),
    ("request.taste", [1, 2, 1e39], "request.taste"),
    ("request.taste", 1, "request.taste"),
    ("candidates", ..., "candidates"),
    ("candidates.item_id", ..., "candidates.item_id"),
    ("candidates.item_id", [1, 2.5, 3], "candidates.item_id"),
    ("candidates.item_id", [1, "2", 3], "candidates.item_id"),
    ("candidates.item_id", [1, None, 3], "candidates.item_id"),
    ("candidates.item_id", [1, True, 3], "candidates.item_id"),
    ("candidates.item_id", [1, 2**64, 3], "candidates.item_id"),
    ("candidates.item_id", [[1], [2], [3]], "candidates.item_id"),
    ("candidates.item_id", [[1], [2, 3]], "candidates.item_id"),
    ("candidates.item_id", {"a": 1}, "candidates.item_id"),
    ("candidates.category", [1, 2], "candidates.category"),
    ("candidates.category", [1, 2, 2**31], "candidates.category"),
    ("candidates.price", [1, 2, "3"], "candidates.price"),
    ("candidates.price", [1.5, False, 3], "candidates.price"),
    ("candidates.price", [1, 2, 1e39], "candidates.price"),
    ("history", [1], "history"),
    ("history", {"columns": {"item_id": [1]}}, "history.columns.action"),
    ("history", {"columns": {"item_id": [1], "action": [1, 2]}}, "history.columns.action"),
    ("history", {"columns": {"item_id": [1], "action": [1]}, "end": 3}, "history"),
    ("history", {"columns": {"item_id": [1], "action": [1]}, "end": -3}, "history.end"),
    ("at", -1, "at"),
    ("version", "new", "version"),
    ("deadline_ms", 0, "deadline_ms"),
    ("deadline_ms", "soon", "deadline_ms"),
]


@pytest.mark.parametrize(("path", "value", "column"), WRONG, ids=[f"{path}={value!r:.20}" for path, value, _ in WRONG])
def test_what_does_not_fit_is_refused_with_its_column(path, value, column):
    with pytest.raises(RequestError) as refused:
        asked(changed(path, value))
    assert refused.value.column == column
    assert refused.value.required
    assert refused.value.found
    assert refused.value.status == 422


@pytest.mark.parametrize("count", [51, 1_000_000])
def test_too_many_candidates_are_refused_by_their_number(count):
    with pytest.raises(RequestError, match=f"at most 50 entries required, found {count}") as refused:
        asked(changed("candidates.item_id", [1] * count))
    assert refused.value.status == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"NaN", b'{"user_id": NaN}', b"\xff", b'"x"', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_a_400(body):
    with pytest.raises(RequestError) as refused:
        bodies.parse_object(body)
    assert refused.value.status == 400


@pytest.mark.slow
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_float32_survive_json_both_ways(values):
    sent = np.array(values, np.float32)
    answer = encode({"logits": {"click": sent}})
    back = np.array(orjson.loads(answer)["logits"]["click"], np.float64).astype(np.float32)
    assert back.tobytes() == sent.tobytes()


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
paths = st.sampled_from(sorted({path for path, _, _ in WRONG}))


@pytest.mark.slow
@settings(max_examples=200)
@given(paths, anything)
def test_any_value_anywhere_is_read_or_refused(path, value):
    values = orjson.loads(orjson.dumps(GOOD))
    *folders, name = path.split(".")
    place = values
    for folder in folders:
        place = place[folder]
    place[name] = value
    with contextlib.suppress(RequestError):
        found = bodies.rank_request(values, INPUTS, LIMITS)
        TRANSFORMS.rows(
            {"category": np.zeros(len(found.request.candidates["item_id"]), np.int32), **found.request.candidates}
        )


def arrow_body(candidates=None, request=None, options=None):
    schema_metadata = {REQUEST_KEY: orjson.dumps(request or {"user_id": 7, "request": GOOD["request"]})}
    columns = candidates or {
        "item_id": pa.array([4, -1, 2**63 - 1]),
        "category": pa.array([1, 2, 3], pa.int32()),
        "price": pa.array([0.5, None, 1], pa.float32()),
    }
    table = pa.table(columns).replace_schema_metadata(schema_metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_arrow_and_json_are_the_same_request():
    plain, in_arrow = asked(GOOD).request, arrow.rank_request_of(arrow_body(), INPUTS, LIMITS).request
    assert plain.candidates.keys() == in_arrow.candidates.keys()
    for name, values in plain.candidates.items():
        np.testing.assert_array_equal(in_arrow.candidates[name], values, strict=True)
    assert plain.user_id == in_arrow.user_id


def test_arrow_bodies_that_do_not_fit_are_refused():
    whole = arrow_body()
    for length in (0, 3, 8, 100, len(whole) // 2):
        with pytest.raises(RequestError):
            arrow.rank_request_of(whole[:length], INPUTS, LIMITS)
    compressed = arrow_body(options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(RequestError, match="uncompressed"):
        arrow.rank_request_of(compressed, INPUTS, LIMITS)
    nested = {"item_id": pa.array([1]), "category": pa.array([[1]])}
    with pytest.raises(RequestError, match=r"candidates\.category: plain"):
        arrow.rank_request_of(arrow_body(nested), INPUTS, LIMITS)
    with pytest.raises(RequestError, match=r"candidates\.item_id: a list of int64 required, found 1\.0"):
        arrow.rank_request_of(arrow_body({"item_id": pa.array([1.0])}), INPUTS, LIMITS)
    with pytest.raises(RequestError, match="at most 50"):
        arrow.rank_request_of(arrow_body({"item_id": pa.array([1] * 51)}), INPUTS, LIMITS)


@settings(max_examples=100)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_damaged_arrow_body_is_read_or_refused(place, byte):
    body = bytearray(arrow_body())
    body[place % len(body)] = byte
    with contextlib.suppress(RequestError):
        arrow.rank_request_of(bytes(body), INPUTS, LIMITS)


def test_the_arrow_answer_carries_the_bits():
    logits = np.random.default_rng(0).normal(size=9).astype(np.float32)
    ranked = Ranked(logits={"click": logits}, model="m", start=0, end=3, version=1, context="kept", marks=("history",))
    table = pa.ipc.open_stream(arrow.ranked_body(ranked)).read_all()
    assert table["click"].to_numpy().tobytes() == logits.tobytes()
    said = orjson.loads(table.schema.metadata[ANSWER_KEY])
    assert said == {"model": "m", "start": 0, "end": 3, "version": 1, "context": "kept", "marks": ["history"]}


def oip_inputs(binary):
    columns = {
        "user_id": ("INT64", [1], np.array([7])),
        "hour": ("INT32", [1], np.array([3], np.int32)),
        "taste": ("FP32", [1, 3], np.array([0.1, 2, -3.5], np.float32)),
        "item_id": ("INT64", [3], np.array([4, -1, 2**63 - 1])),
        "category": ("INT32", [3], np.array([1, 2, 3], np.int32)),
        "history_item_id": ("INT64", [2], np.array([5, 6])),
        "history_action": ("INT32", [2], np.array([0, 1], np.int32)),
        "history_end": ("INT64", [1], np.array([10])),
    }
    tensors, tail = [], b""
    for name, (datatype, shape, values) in columns.items():
        one = {"name": name, "datatype": datatype, "shape": shape}
        if binary:
            one["parameters"] = {"binary_data_size": values.nbytes}
            tail += values.tobytes()
        else:
            one["data"] = values.tolist()
        tensors.append(one)
    head = orjson.dumps({"id": "a", "inputs": tensors, "parameters": {"binary_data_output": binary}})
    return head + tail, len(head) if binary else None


@pytest.mark.parametrize("binary", [False, True])
def test_open_inference_tensors_are_the_same_request(binary):
    found, request_id, outputs = oip.rank_request_of(*oip_inputs(binary), INPUTS, LIMITS)
    request = found.request
    assert outputs.of(["click", "save"]) == {"click": binary, "save": binary}
    assert (request_id, request.user_id, request.request["hour"]) == ("a", 7, 3)
    plain = asked(GOOD).request
    for name in ("item_id", "category"):
        np.testing.assert_array_equal(request.candidates[name], plain.candidates[name], strict=True)
    np.testing.assert_array_equal(request.request["taste"], plain.request["taste"], strict=True)
    assert (request.history.start, request.history.end) == (8, 10)


SECOND, DAY = 1_000_000, 86_400_000_000
EVENTS_1997, SYNTHETIC = 874_724_710 * SECOND, 1_748_736_000 * SECOND
TIMED = dataclasses.replace(INPUTS, request={**INPUTS.request, "request_ts": bodies.MOMENT})


def as_open_inference(request_ts):
    whole, _ = oip_inputs(False)
    head = orjson.loads(whole)
    head["inputs"].append({"name": "request_ts", "datatype": "INT64", "shape": [1], "data": [request_ts]})
    return oip.rank_request_of(orjson.dumps(head), None, TIMED, LIMITS)[0]


DOORS = {
    "json": lambda at: bodies.rank_request(changed("request.request_ts", at), TIMED, LIMITS),
    "arrow": lambda at: arrow.rank_request_of(
        arrow_body(request={"user_id": 7, "request": {**GOOD["request"], "request_ts": at}}), TIMED, LIMITS
    ),
    "oip": as_open_inference,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_moment_in_another_unit_than_microseconds_is_refused_with_the_unit(door):
    now = now_us()
    for right in (EVENTS_1997, SYNTHETIC, now, now + DAY - SECOND, 365 * DAY):
        assert DOORS[door](right).request.request["request_ts"] == right
    for wrong in (now // SECOND, now // 1000, now * 1000, now + DAY + 60 * SECOND, 365 * DAY - 1, 0, -now):
        with pytest.raises(RequestError, match="microseconds since 1970") as refused:
            DOORS[door](wrong)
        assert (refused.value.column, refused.value.status) == ("request.request_ts", 422)


def test_a_click_has_its_senders_time_as_long_as_that_is_believable():
    now, hour, second = 1_764_000_000_000_000, 3_600_000_000, 1_000_000
    for said, taken in (
        (None, now),
        (now - 5 * second, now - 5 * second),
        (now - hour, now - hour),
        (now - hour - 1, now),  # no clock, or one that is wrong
        (now + 5 * second, now),  # a clock that is a little ahead
        (now + hour, now),
        (0, now),
    ):
        body = {"request_id": "5", "labels": ["click"], "event_ts": said, "user_id": 7}
        assert bodies.shown_request(body).event_ts(now) == taken
        assert body == {"user_id": 7}
    for wrong in (1.5, "now", -1, True):
        with pytest.raises(RequestError, match="event_ts"):
            bodies.shown_request({"request_id": "5", "labels": ["click"], "event_ts": wrong})


def test_open_inference_tensors_that_do_not_fit_are_refused():
    body, length = oip_inputs(True)
    for wrong_body, wrong_length in ((body[:-1], length), (body + b"x", length), (body, length - 1), (body, 10**9)):
        with pytest.raises(RequestError):
            oip.rank_request_of(wrong_body, wrong_length, INPUTS, LIMITS)
    for tensor in (
        {"name": "user_id", "datatype": "INT64", "shape": [2], "data": [1, 2]},
        {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["x"]},
        {"name": "user_id", "datatype": "INT64", "shape": [-1], "data": [1]},
        {"name": "user_id", "datatype": "INT64", "shape": [1], "data": [1.5]},
        {"name": "user_id", "datatype": "INT64", "shape": [10**9], "data": [1]},
        {"name": "user_id", "datatype": "INT64", "shape": "x"},
        "x",
    ):
        with pytest.raises(RequestError):
            oip.rank_request_of(orjson.dumps({"inputs": [tensor]}), None, INPUTS, LIMITS)
    history = {"name": "history_item_id", "datatype": "INT64", "shape": [1], "data": [1]}
    for name in ("history_end", "timeline_version"):
        for datatype, data in (("BYTES", ["x"]), ("FP64", [1e300]), ("BOOL", [True]), ("INT64", [-1])):
            tensor = {"name": name, "datatype": datatype, "shape": [1], "data": data}
            with pytest.raises(RequestError, match=f"{name}: a whole number"):
                oip.rank_request_of(orjson.dumps({"inputs": [history, tensor]}), None, INPUTS, LIMITS)


def test_the_open_inference_answer_carries_the_bits_in_binary():
    logits = np.random.default_rng(0).normal(size=9).astype(np.float32)
    ranked = Ranked(logits={"click": logits}, model="m", start=0, end=3, version=1, context="kept")
    body, length = oip.ranked_body(ranked, "ranking", "a", {"click": True})
    assert body[length:] == logits.tobytes()
    plain, none = oip.ranked_body(ranked, "ranking", "a", {"click": False})
    assert none is None
    data = orjson.loads(plain)["outputs"][0]["data"]
    assert np.array(data, np.float32).tobytes() == logits.tobytes()


def test_open_inference_outputs_are_those_asked_for_in_that_order_each_as_it_asks():
    labels = ("click", "save", "share")
    logits = {label: np.float32([place, 0.1]) for place, label in enumerate(labels)}
    ranked = Ranked(logits=logits, model="m", start=0, end=3, version=1, context="kept")
    given = [{"name": "share"}, {"name": "click", "parameters": {"binary_data": True}}]
    body, length = oip.ranked_body(ranked, "ranking", None, oip.Outputs.read(given, binary=False).of(labels))
    share, click = orjson.loads(body[:length])["outputs"]
    assert (share["name"], np.float32(share["data"]).tobytes()) == ("share", logits["share"].tobytes())
    assert (click["name"], body[length:]) == ("click", logits["click"].tobytes())
    given[1]["parameters"] = {"binary_data": False}
    assert oip.Outputs.read(given, binary=True).of(labels) == {"share": True, "click": False}
    assert list(oip.Outputs.read([], binary=False).of(labels)) == [*labels]
    with pytest.raises(RequestError, match="outputs: names of click, save, share required, found 'clik'"):
        oip.Outputs.read([{"name": "clik"}], binary=False).of(labels)
    for wrong in (5, [5], [{}], [{"name": "click"}, {"name": "click"}]):
        with pytest.raises(RequestError, match="outputs"):
            oip.Outputs.read(wrong, binary=False)


def test_columns_of_a_history_that_the_model_does_not_read_are_dropped_and_named():
    columns = {"item_id": [1, 2], "action": [0, 1], "ts": [5, 6], "foo": ["a"]}
    found = asked({**GOOD, "history": {"columns": columns}})
    assert found.dropped == ("ts", "foo")
    assert found.request.history.columns.keys() == {"item_id", "action"}
