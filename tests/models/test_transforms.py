from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reqdedup.arrays.windows import HistoryCut
from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.transforms import Transforms
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.training.loader import RequestLoader
from reqdedup.values import NULL_INTEGER
from tests.training.logs import SCHEMA, random_log

CUT = HistoryCut(max_events=8, stride=3)


def _transforms(config=None, **options) -> Transforms:
    config = config or DCATConfig.from_schema(SCHEMA, exclude=("position",), numbers=("device",), max_history=8)
    return Transforms.of(config, SCHEMA, **options)


def _plain_batch(transforms: Transforms, request: dict, user_id: int) -> RequestBatch:
    """One request of the log from its plain values, as a caller sends them."""
    return transforms.batch(
        user_id=user_id,
        request={name: request[name] for name in ("device", "user_embedding")},
        history={"item_id": request["history_item_id"], "action": request["history_action"]},
        history_end=request["history_end"],
        candidates={name: [row[name] for row in request["rows"]] for name in request["rows"][0]},
    )


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_the_same_rows_from_the_table_and_from_plain_values_are_the_same_tensors(tmp_path, stride):
    """With nulls, empty histories and such that are longer than the cut, to the bit."""
    log = random_log(num_groups=3, largest_history=30, seed=4)
    transforms = _transforms(stride=stride)
    seen = 0
    loader = RequestLoader(
        log.write(tmp_path / "log.parquet"), requests_per_batch=7, shuffle="none", cut=transforms.cut
    )
    for batch in loader:
        users, requests = batch.user_id_R.tolist(), batch.request["request_id"].tolist()
        plain = RequestBatch.concatenate([
            _plain_batch(transforms, log.requests[key], key[0]) for key in zip(users, requests, strict=True)
        ])  # fmt: skip
        of_log, tensors = batch.tensors(), plain.validate().tensors()
        assert set(tensors) == set(of_log) - {"request/request_id", "request/request_ts", "request/history_end"} - {
            f"row/{name}" for name in ("position", "click")
        }
        for name, tensor in tensors.items():
            assert tensor.dtype == of_log[name].dtype, name
            assert tensor.numpy().tobytes() == of_log[name].numpy().tobytes(), name
        seen += batch.num_requests
    assert seen == len(log.requests)
    lengths = [len(request["history_item_id"]) for request in log.requests.values()]
    assert min(lengths) == 0
    assert max(lengths) > 8
    assert any(request["device"] is None for request in log.requests.values())


@pytest.mark.parametrize(
    ("dtype", "null"),
    [("bool", False), ("int32", -1), ("int64", -1), ("float32", math.nan), ("float64", math.nan), ("timestamp", -1)],
)
def test_nulls_and_what_is_left_out_become_one_value_of_their_type(dtype, null):
    column = Column(name="x", dtype=dtype, level=Level.REQUEST, nullable=True)
    transforms = Transforms.of(DCATConfig(request_numbers=("x",)), EngagementSchema((*SCHEMA.columns, column)))
    value = True if dtype == "bool" else 3
    found = transforms.requests([{"x": None}, {"x": value}, {}])["x"]
    torch.testing.assert_close(found, torch.tensor([null, value, null], dtype=found.dtype), equal_nan=True)
    assert str(found.dtype) == f"torch.{dtype.replace('timestamp', 'int64')}"
    assert NULL_INTEGER == -1


def test_nan_is_a_null_float_and_large_ids_keep_every_bit():
    columns = (SCHEMA["item_id"], Column(name="x", dtype="float32", level=Level.REQUEST))
    transforms = Transforms(columns=columns, cut=CUT)
    assert transforms.requests([{"x": math.nan}])["x"].isnan().all()
    ids = [2**63 - 1, -(2**63), 0]
    assert transforms.rows({"item_id": ids})[0].tolist() == ids
    assert transforms.rows({"item_id": np.array(ids)})[0].tolist() == ids


def _column(name, dtype, **options):
    return Column(name=name, dtype=dtype, level=Level.REQUEST, **options)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (_column("x", "int32"), None, "a whole number from -2147483648 to 2147483647 required, found none"),
        (_column("x", "int32"), 1.5, "2147483647 required, found 1.5"),
        (_column("x", "int32"), True, "2147483647 required, found True"),
        (_column("x", "int32"), "7", "2147483647 required, found '7'"),
        (_column("x", "int32"), 2**31, "2147483647 required, found 2147483648"),
        (_column("x", "int64"), 2**63, "9223372036854775807 required, found 9223372036854775808"),
        (_column("x", "int64"), 2**70, "required, found 1180591620717411303424"),
        (_column("x", "int64"), [1, 2], r"required, found \[1, 2\]"),
        (_column("x", "bool"), 1, "bool required, found 1"),
        (_column("x", "float32"), True, "a finite float32 required, found True"),
        (_column("x", "float32"), math.inf, "a finite float32 required, found inf"),
        (_column("x", "float32"), 1e300, r"a finite float32 required, found 1e\+300"),
        (_column("x", "float32", kind=Kind.VECTOR, width=3), [1.0, 2.0], r"3 numbers .* required, found \[1.0, 2.0\]"),
        (_column("x", "float32", kind=Kind.VECTOR, width=3), [], r"3 numbers .* required, found \[\]"),
        (_column("x", "float32", kind=Kind.VECTOR, width=3), None, "3 numbers .* required, found None"),
        (
            _column("x", "float32", kind=Kind.VECTOR, width=2),
            [1.0, math.nan],
            "2 numbers .* required, found nan at place 1",
        ),
        (
            _column("x", "float32", kind=Kind.VECTOR, width=2),
            [[1.0], [2.0, 3.0]],
            r"required, found \[1.0\] at place 0",
        ),
    ],
)
def test_unfit_values_are_refused_in_a_sentence(column, value, said):
    transforms = Transforms(columns=(SCHEMA["item_id"], column), cut=CUT)
    with pytest.raises(ValueError, match=said) as error:
        transforms.requests([{"x": value}])
    assert str(error.value).startswith("request.x: ")


def test_unfit_histories_and_candidates_are_refused():
    transforms = _transforms()
    history = {"item_id": [1, 2], "action": [0, 0]}
    for events, said in (
        ({"item_id": [1]}, "history: column action required, found item_id"),
        ({**history, "action": [0]}, "columns of one length required"),
        ({**history, "action": [0, None]}, "history.columns.action: a list of int32 required, found None at place 1"),
    ):
        with pytest.raises(ValueError, match=said):
            transforms.history(events)
    for candidates, said in (
        ({"item_id": 7}, "candidates.item_id: a list of int64 required, found 7"),
        ({"item_id": "789"}, "candidates.item_id: a list of int64 required, found '789'"),
        ({"is_new": [True]}, "candidates: column item_id required"),
        ({"item_id": [1, 2], "is_new": [True]}, "candidates.is_new: 2 values, one for each item_id, required, found 1"),
    ):
        with pytest.raises(ValueError, match=said):
            transforms.rows(candidates)
    assert transforms.rows({"item_id": []})[0].dtype == torch.int64


def test_an_input_of_text_is_refused_when_the_model_is_declared():
    title = Column(name="title", dtype="string", level=Level.ITEM)
    with pytest.raises(ValueError, match=r"input title: a dtype of bool, int32, .* required, found string"):
        Transforms.of(DCATConfig(item_categories=("title",)), EngagementSchema((*SCHEMA.columns, title)))


def test_a_log_without_a_column_of_the_model_is_refused():
    config = TwoTowerConfig(request_numbers=("age",))
    with pytest.raises(ValueError, match="columns age required by the model"):
        Transforms.of(config, SCHEMA)


def test_a_shared_context_gets_its_window_from_the_history():
    schema = EngagementSchema((*SCHEMA.columns, Column(name="timeline_version", dtype="int32", level=Level.REQUEST)))
    config = DCATConfig(share_context="user", history_categories=("action",), max_history=8)
    batch = Transforms.of(config, schema).batch(
        request={},
        history={"item_id": range(20), "action": [0] * 20},
        history_end=25,
        timeline_version=3,
        candidates={"item_id": [1]},
    )
    assert (batch.request["history_end"].tolist(), batch.request["timeline_version"].tolist()) == ([25], [3])
    assert batch.history["item_id"].tolist() == list(range(13, 20))  # starts at 18, a multiple of the stride 2


def test_a_candidate_that_was_not_shown_yet_stands_first():
    transforms = Transforms.of(DCATConfig.from_schema(SCHEMA, max_history=8), SCHEMA)
    assert transforms.rows({"item_id": [5, 6]})[1]["position"].tolist() == [0, 0]
    assert transforms.rows({"item_id": [5, 6], "position": [3, 4]})[1]["position"].tolist() == [3, 4]
