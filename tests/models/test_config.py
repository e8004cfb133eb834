"""Configurations from a log's schema, whole and round trip."""

from __future__ import annotations

import json

import pytest
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT, DCATConfig, TwoTower, TwoTowerConfig
from reqdedup.schema import Column, EngagementSchema, Kind, Level

KEYS = (
    Column(name="user_id", dtype="int64", level=Level.KEY),
    Column(name="request_id", dtype="int64", level=Level.KEY),
    Column(name="item_id", dtype="int64", level=Level.KEY),
    Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
)
HISTORY = Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
CLICK = Column(name="click", dtype="int32", level=Level.LABEL, nullable=True)
SMALL = EngagementSchema((*KEYS, HISTORY, CLICK))
FULL = EngagementSchema(
    (
        *KEYS,
        Column(name="history_end", dtype="int64", level=Level.REQUEST),
        Column(name="timeline_version", dtype="int32", level=Level.REQUEST),
        HISTORY,
        Column(name="history_action", dtype="int32", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="history_ts", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="user_embedding", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=16),
        Column(name="device", dtype="int32", level=Level.REQUEST),
        Column(name="recent_events", dtype="int32", level=Level.REQUEST),
        Column(name="score", dtype="float32", level=Level.REQUEST),
        Column(name="user_key", dtype="string", level=Level.REQUEST),
        Column(name="item_category", dtype="int32", level=Level.ITEM),
        Column(name="position", dtype="int32", level=Level.ITEM),
        Column(name="item_key", dtype="string", level=Level.ITEM),
        CLICK,
        Column(name="save", dtype="int32", level=Level.LABEL, nullable=True),
    )
)


def test_a_full_log_gives_every_input_that_a_model_can_use():
    config = DCATConfig.from_schema(FULL, numbers=["recent_events"], num_layers=1)
    assert config == DCATConfig(
        history_categories=("action",),
        request_categories=("device",),
        request_vectors=(("user_embedding", 16),),
        request_numbers=("recent_events", "score"),
        item_categories=("item_category", "position"),
        labels=("click", "save"),
        num_layers=1,
    )
    assert set(config.columns) == {
        *("history_item_id", "history_action", "device", "user_embedding", "recent_events", "score"),
        *("item_category", "position"),
    }
    assert set(config.columns) <= set(FULL.names)


def test_a_retrieval_model_reads_no_position_whatever_else_it_leaves_out():
    assert TwoTowerConfig.from_schema(FULL).item_categories == ("item_category",)
    assert TwoTowerConfig.from_schema(FULL, exclude=["device"]).item_categories == ("item_category",)


def test_a_log_of_users_items_times_and_a_label_trains_both_models():
    batch = RequestBatch(
        user_id_R=torch.tensor([7, 9]),
        item_id_B=torch.tensor([1, 2, 3]),
        request_of_row_B=torch.tensor([0, 0, 1]),
        row_offsets_R1=torch.tensor([0, 2, 3]),
        history_offsets_R1=torch.tensor([0, 2, 2]),
        row={"click": torch.tensor([1.0, torch.nan, 0.0])},
        history={"item_id": torch.tensor([4, 5])},
    ).validate()
    dcat = DCAT(DCATConfig.from_schema(SMALL, item_table_rows=100))
    two_tower = TwoTower(TwoTowerConfig.from_schema(SMALL, item_table_rows=100))
    user_RD, item_BD = two_tower(batch)
    ((batch.expand(user_RD) * item_BD).sum() + dcat(batch).square().sum()).backward()
    for model in (dcat, two_tower):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("config", [DCATConfig.from_schema(FULL), TwoTowerConfig.from_schema(FULL)])
def test_a_configuration_survives_json(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DCATConfig(width=10, num_heads=4), "num_heads must divide width"),
        (lambda: DCATConfig(width=10, num_heads=2, positions="rope"), "must be even, found 5"),
        (lambda: DCATConfig(positions="sinus"), "positions one of"),
        (lambda: DCATConfig(num_layers=0), "num_layers of at least 1"),
        (lambda: DCATConfig(hidden_widths=()), "hidden_widths"),
        (lambda: DCATConfig(labels=()), "at least one label"),
        (lambda: DCATConfig.from_schema(FULL, labels=["like"]), r"labels \['like'\] are not in the log"),
        (
            lambda: TwoTowerConfig.from_schema(EngagementSchema((*KEYS, CLICK))),
            "needs .* --rename COLUMN=history_item_id",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
