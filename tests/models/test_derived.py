"""Derived features equal plain Python, and a model with them its twins: per row, folded, and the user head alone."""

from __future__ import annotations

import json
import math
from bisect import bisect_right

import pytest
import torch

from reqdedup.models import DCAT, Derived, TwoTower, naive
from reqdedup.models.derived import with_derived
from reqdedup.models.registry import config_from_dict, config_to_dict
from reqdedup.models.two_tower import UserHead
from tests.models.batches import SHAPES, dcat_config, random_batch, two_tower_config
from tests.models.twins import TOLERANCE, assert_same, twins

DERIVED = {
    "derived_request": (
        Derived(name="known_device", op="vocabulary", columns=("device",), values=(3, 1)),
        Derived(name="age", op="normalise", columns=("age_days",), values=(50.0, 20.0)),
        Derived(name="time", op="cyclic", columns=("age_days",), values=(7.0,)),
        Derived(name="kind", op="cross", columns=("device", "tier")),
    ),
    "derived_item": (
        Derived(name="dear", op="buckets", columns=("price",), values=(10.0, 50.0)),
        Derived(name="price_at_most_60", op="clip", columns=("price",), values=(0.0, 60.0)),
        Derived(name="other_hash", op="hash", columns=("item_category",), values=(1,)),
    ),
    "item_numbers": ("price",),
}


def batch_with_prices(shape="ragged, empty histories and requests"):
    batch = random_batch(*SHAPES[shape])
    batch.row["price"] = 100 * torch.rand(batch.num_rows, dtype=torch.float64)
    batch.row["price"][:1] = math.nan
    batch.request["tier"] = torch.arange(batch.num_requests).int() % 2
    return batch


def test_each_op_equals_plain_python():
    x = [-3.5, 0.0, 9.0, 10.0, 11.5, 1e9, math.nan]
    ids = [4, -1, 7, 4, 2**40, 0, 5]
    columns = {"x": torch.tensor(x, dtype=torch.float64), "id": torch.tensor(ids), "other": torch.arange(7)}

    def found(op, column="x", values=(), **more):
        one = Derived(name="d", op=op, columns=more.get("columns", (column,)), values=values)
        return with_derived([one], columns)["d"]

    known = (7, 2**40, 4)
    assert found("vocabulary", "id", known).tolist() == [known.index(i) + 1 if i in known else 0 for i in ids]
    edges = (0.0, 10.0, 100.0)
    assert found("buckets", values=edges).tolist() == [0 if math.isnan(v) else bisect_right(edges, v) for v in x]
    clipped = [[0.0 if math.isnan(v) else min(max(v, -1.0), 10.0)] for v in x]
    assert found("clip", values=(-1.0, 10.0)).tolist() == clipped
    scaled = [[0.0 if math.isnan(v) else (v - 2) / 4] for v in x]
    assert found("normalise", values=(2.0, 4.0)).tolist() == scaled
    turned = [
        [0.0, 0.0] if math.isnan(v) else [f(2 * math.pi * (v % 24) / 24) for f in (math.sin, math.cos)] for v in x
    ]
    torch.testing.assert_close(found("cyclic", values=(24.0,)), torch.tensor(turned).double(), rtol=1e-9, atol=1e-6)
    of_ids = torch.tensor([[0.0 if i == -1 else (i - 40) / 10] for i in ids])
    torch.testing.assert_close(found("normalise", "id", (40.0, 10.0)), of_ids)
    assert found("buckets", "id", (-5.0, 5.0)).tolist() == [0 if i == -1 else bisect_right((-5, 5), i) for i in ids]
    crossed = found("cross", columns=("id", "other"))
    assert len(set(crossed.tolist())) == len(set(zip(ids, range(7), strict=True)))
    assert not torch.equal(crossed, found("cross", columns=("other", "id"))), "which column a value is of matters"
    hashed = found("hash", "id", (5,))
    assert len(set(hashed.tolist())) == len(set(ids))
    assert not torch.equal(hashed, found("hash", "id", (6,)))


def test_a_time_in_microseconds_keeps_its_place_in_the_day():
    day = 24 * 3600 * 1_000_000
    now = 1_790_000_000_000_000
    one = Derived(name="hour", op="cyclic", columns=("request_ts",), values=(day,))
    found = one.of({"request_ts": torch.tensor([now, now + 5 * day])})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], found[1])


def test_dcat_with_derived_features_equals_its_twin_and_its_folded_self():
    torch.set_default_dtype(torch.float64)
    try:
        config = dcat_config(**DERIVED)
        ours, duplicated = twins(DCAT(config), naive.DCAT(config))
        batch = batch_with_prices()
        weight = torch.randn(batch.num_rows, 2)
        found, expected = ours(batch), duplicated(batch)
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
        (found * weight).sum().backward()
        (expected * weight).sum().backward()
        assert_same(ours, duplicated)
        ours.eval()
        torch.testing.assert_close(ours.predict_exact(batch), ours.predict(batch), rtol=TOLERANCE, atol=TOLERANCE)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_user_head_computes_them_as_the_tower_does():
    torch.manual_seed(0)
    tower, batch = TwoTower(two_tower_config(**DERIVED)).eval(), batch_with_prices()
    states = torch.randn(batch.num_requests, tower.config.state_width)
    wanted, head = tower.user_head(states, batch.request), UserHead(tower)
    for r in range(batch.num_requests):
        request = {name: x[r : r + 1] for name, x in batch.request.items()}
        torch.testing.assert_close(torch.from_numpy(head(states[r].numpy(), request)), wanted[r], rtol=1e-4, atol=1e-5)


def test_they_are_part_of_the_configuration_and_say_what_is_read():
    config = dcat_config(**DERIVED)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    assert {"price", "tier", "device"} <= set(config.columns)
    assert len(set(config.columns)) == len(config.columns)
    assert config.item_columns == ("item_category", "price")
    assert "derived_item" not in config_to_dict(dcat_config()), "earlier versions read what needs none of it"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"op": "sum"}, "op one of"),
        ({"op": "cross"}, "at least two columns required, found a"),
        ({"op": "clip", "values": (1.0,)}, "2 values required for clip, found 1"),
        ({"op": "buckets", "values": (2.0, 1.0)}, "rising values required"),
        ({"op": "cyclic", "values": (0.0,)}, "above 0 required"),
        ({"op": "vocabulary", "values": (1.5,)}, "whole numbers required"),
        ({"op": "buckets", "values": (math.nan,)}, "finite numbers required"),
        ({"op": "vocabulary", "values": ("a",)}, "finite numbers required as values, found"),
        ({"op": "vocabulary", "values": (2, 1, 2)}, "each value once required"),
    ],
)
def test_what_means_nothing_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Derived(**{"name": "d", "columns": ("a",), **options})


def test_names_and_columns_are_checked():
    one = Derived(name="device", op="clip", columns=("age_days",), values=(0.0, 1.0))
    with pytest.raises(ValueError, match="names that no other input has required, found device"):
        dcat_config(derived_request=(one,))
    with pytest.raises(ValueError, match="derived feature d: column gone required"):
        with_derived([Derived(name="d", op="clip", columns=("gone",), values=(0.0, 1.0))], {})
