"""What the log's columns cannot give is refused from configuration and schema alone, before anything is written."""

from __future__ import annotations

import pytest

from reqdedup.models import DCATConfig, Derived, TwoTowerConfig
from reqdedup.training import TrainingConfig, train
from reqdedup.training.columns import check_columns
from tests.training.logs import SCHEMA, random_log

RETRIEVAL = TwoTowerConfig.from_schema(SCHEMA, width=8, num_layers=1)
RANKING = DCATConfig.from_schema(SCHEMA, width=8, num_layers=1)


def derived(where, op, columns, values=()):
    one = Derived(name="d", op=op, columns=columns, values=values)
    return {"model": DCATConfig.from_schema(SCHEMA, width=8, num_layers=1, **{where: (one,)})}


def timed(duration):
    return {"positives": (("click", 1.0, duration, 30.0),)}


CASES = {
    "positive label": ({"positive_label": "clik"}, "positive_label: one of the log's labels required, found 'clik'; it"),
    "positives": ({"positives": (("buy", 1.0, "", 0.0),)}, "positives: one of the log's labels required, found 'buy'"),
    "duration that is an input": (timed("price"), "no input of the model required, found price of click among its"),
    "duration of text": (timed("user_key"), "a number for each item of a request .or a label. required, found user_key"),
    "duration of a request": (timed("device"), "required, found device, int32 at the level request"),
    "duration nowhere": (timed("dwell"), "no such column: dwell; the log has user_id,"),
    "groups of text": ({"coarse_column": "user_key"}, "coarse_column: a column with a whole number .* text at the level"),
    "groups of fractions": ({"coarse_column": "price"}, "required, found price, float64 at the level item"),
    "slices of text": ({"slice_by": ("user_key",)}, "slice_by: a column with a whole number for each request required"),
    "slices of items": ({"slice_by": ("position",)}, "required, found position, int32 at the level item"),
    "slices of times": ({"slice_by": ("request_ts",)}, "found request_ts, timestamp at the level request"),
    "slices of vectors": ({"slice_by": ("user_embedding",)}, r"found user_embedding, float32 .vector. at the level req"),
    "rates": ({"rate_factors": {"transfomer": 0.1}}, "beginnings of names of the model's parameters required in rate"),
    "derived of a label": (derived("derived_item", "buckets", ["click"], [1]), "d: a column .* found click, int32 at the"),
    "derived of the other level": (derived("derived_request", "hash", ["position"], [1]), "found position, int32 at"),
    "derived of text": (derived("derived_request", "hash", ["user_key"], [1]), "found user_key, text at the level req"),
    "derived of nothing": (derived("derived_request", "hash", ["devise"], [1]), "derived feature d: no such column: dev"),
    "hash of fractions": (derived("derived_item", "hash", ["price"], [1]), "whole numbers required for hash, found price"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name):
    changes, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        check_columns(config(**changes), SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": RANKING, "positive_label": "no label of this log", "slice_by": ("device",)},
        {"model": TwoTowerConfig.from_schema(SCHEMA, exclude=["price"]), **timed("price"), "coarse_column": "is_new"},
        {"rate_factors": {"transformer": 0.1, "embedding": 0}},
        derived("derived_item", "buckets", ["price"], [1.0]),
        derived("derived_request", "cyclic", ["request_ts"], [1.0]),
    ],
    ids=str,
)
def test_what_the_columns_give_is_not(changes):
    check_columns(config(**changes), SCHEMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_label": "clik"}, "one of the log's labels required, found 'clik'"),
        ({"foundation": "nowhere.pt"}, r"nowhere\.pt: a checkpoint required, found no file"),
        ({"warm_start": "nowhere.pt"}, r"nowhere\.pt: a checkpoint required, found no file"),
        ({"model": RANKING, "teacher": "nowhere.pt"}, r"nowhere\.pt: a checkpoint required, found no file"),
    ],
    ids=str,
)
def test_nothing_is_written_and_no_rank_starts(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(config(**changes), random_log(), out_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({name: nan}, f"{name}: a finite number required, found nan") for nan in [float("nan")]
          for name in ("learning_rate", "temperature", "table_learning_rate", "weight_decay")),
        ({"learning_rate": float("inf")}, "learning_rate: a finite number required, found inf"),
        ({"rate_factors": {"transformer": "a"}}, "rate_factors: a finite number required, found 'a'"),
        ({"rate_factors": {"transformer": -1}}, "rate_factors of at least 0 required, found -1"),
        ({"label_maturity_s": {"click": "1d"}, "model": RANKING}, "label_maturity_s: a finite number required"),
        ({"label_maturity_s": {"click": -5}, "model": RANKING}, "label_maturity_s of at least 0 required, found -5"),
        ({"catalogue_items": 1}, "catalogue_items of at least 2 required, found 1"),
        ({"eval_requests": -1}, "eval_requests of at least 0 required, found -1"),
        ({"chunk_rows": 0}, "chunk_rows of at least 1 required, found 0"),
        ({"pieces": 0}, "pieces of at least 1 required, found 0"),
        ({"temperature": 0}, "temperature above 0 required, found 0"),
    ],
    ids=str,
)  # fmt: skip
def test_a_number_that_means_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def config(**changes):
    return TrainingConfig(
        **{"model": RETRIEVAL, "num_steps": 1, "requests_per_step": 4, "learning_rate": 0.1, **changes}
    )
