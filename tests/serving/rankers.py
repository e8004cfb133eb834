"""A small ranking model with all kinds of inputs, its transforms, and requests for it."""

from __future__ import annotations

import numpy as np
import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT
from reqdedup.models.transforms import Transforms
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.sequences.store import Window
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import RankRequest
from tests.models.batches import dcat_config

SCHEMA = EngagementSchema((
    Column(name="user_id", dtype="int64", level=Level.KEY),
    Column(name="request_id", dtype="int64", level=Level.KEY),
    Column(name="item_id", dtype="int64", level=Level.KEY),
    Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
    Column(name="history_end", dtype="int64", level=Level.REQUEST),
    Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
    Column(name="history_action", dtype="int32", level=Level.REQUEST, kind=Kind.SEQUENCE),
    Column(name="user_embedding", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=3),
    Column(name="device", dtype="int32", level=Level.REQUEST, nullable=True),
    Column(name="age_days", dtype="float32", level=Level.REQUEST),
    Column(name="item_category", dtype="int32", level=Level.ITEM),
    Column(name="click", dtype="int32", level=Level.LABEL),
    Column(name="save", dtype="int32", level=Level.LABEL),
))  # fmt: skip


def small_model(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"width": 32, "num_heads": 4, "ffn_width": 64, "hidden_widths": (33, 16), "item_table_rows": 500}
    dcat = DCAT(dcat_config(**{**sizes, "max_history": 80, **changes})).eval()
    with torch.no_grad():
        for layer in dcat.transformer:
            layer.query.weight *= 2
            layer.key_value.weight *= 2
        for norm in dcat.head.norms:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return dcat


def small_ranker(model=None, *, stride=0, **options):
    model = model or small_model()
    transforms = Transforms.of(model.config, SCHEMA, stride=stride)
    return Ranker(model, transforms, **{"fingerprint": "model", "tables": "tables", "schema": "schema", **options})


def features(rng):
    return {
        "user_embedding": rng.standard_normal(3).tolist(),
        "device": None if rng.random() < 0.2 else int(rng.integers(5)),
        "age_days": float(rng.random() * 100),
    }


def candidates(rng, num_rows):
    return {"item_id": rng.integers(0, 2**40, num_rows), "item_category": rng.integers(0, 9, num_rows)}


def window(rng, length, *, start=0, version=0):
    columns = {"item_id": rng.integers(0, 2**40, length), "action": rng.integers(0, 4, length).astype(np.int32)}
    return Window(columns, start, start + length, version)


def rank_request(rng, length, num_rows, *, user_id=1):
    """With a history and features of its own."""
    history = window(rng, length)
    return RankRequest(user_id=user_id, candidates=candidates(rng, num_rows), request=features(rng), history=history)


def batch_of(ranker, request):
    """The request as the loader makes it of a row of a table."""
    events = request.history
    return ranker.transforms.batch(
        request=request.request,
        history=events.columns,
        candidates=request.candidates,
        user_id=request.user_id,
        history_end=events.end,
        timeline_version=events.version,
    )


def fresh(ranker, request):
    """The definition: logits [M, labels] of the request alone, its context computed now."""
    batch: RequestBatch = batch_of(ranker, request)
    return ranker.model.predict_exact(batch).numpy()


def stacked(ranked):
    return np.stack(list(ranked.logits.values()), axis=1)
