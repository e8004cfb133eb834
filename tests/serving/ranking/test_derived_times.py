"""What follows from the time of a request has the same bits in training and in a server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reqdedup.models import DCAT, DCATConfig, Derived
from reqdedup.models.transforms import Transforms
from reqdedup.schema import REQUEST_TS
from reqdedup.sequences.filling import event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.sequences.store import now_us
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import RequestError
from reqdedup.storage import TableSource
from reqdedup.training import RequestLoader
from tests.serving.conftest import SIZES
from tests.serving.rankers import stacked
from tests.serving.table_requests import plain_requests

DAY_US = 24 * 3600 * 1_000_000
DERIVED = (
    Derived(name="time_of_day", op="cyclic", columns=(REQUEST_TS,), values=(DAY_US,)),
    Derived(name="day", op="hash", columns=(REQUEST_TS,), values=(3,)),
    Derived(name="where", op="cross", columns=("device", "surface")),
)


@pytest.fixture(scope="module")
def ranker(trained_bundles, tmp_path_factory):
    """Fresh weights, in a server's part, with the store of the table."""
    torch.manual_seed(0)
    schema = trained_bundles.source.schema
    model = DCAT(DCATConfig.from_schema(schema, derived_request=DERIVED, **SIZES)).eval()
    store = SqliteStore(
        tmp_path_factory.mktemp("store") / "s.db", event_columns(TableSource(trained_bundles.main).schema)
    )
    fill_store(store, trained_bundles.main, [trained_bundles.features])
    yield Ranker(model, Transforms.of(model.config, schema), fingerprint="fresh", store=store)
    store.close()


def test_requests_of_the_table_get_the_bits_of_its_batches(trained_bundles, ranker):
    source, model = trained_bundles.source, ranker.model
    options = {"columns": model.config.columns, "cut": ranker.transforms.cut, "shuffle": "none"}
    expected = {}
    for batch in RequestLoader(source, requests_per_batch=16, **options):
        logits = model.predict_exact(batch).split(batch.row_offsets_R1.diff().tolist())
        expected |= zip(batch.request["request_id"].tolist(), (x.numpy() for x in logits), strict=True)
    moved = 0
    asked = list(plain_requests(source, ranker.transforms))[::4]
    for request_id, request in asked:
        assert REQUEST_TS in request.request
        found = stacked(ranker.rank(request))
        assert np.array_equal(found, expected[request_id])
        later = {**request.request, REQUEST_TS: request.request[REQUEST_TS] + DAY_US // 3}
        moved += not np.array_equal(stacked(ranker.rank(replace(request, request=later))), found)
    assert moved == len(asked), "the time is read"


def test_who_says_no_time_is_asked_about_now(trained_bundles, ranker, monkeypatch):
    _, request = next(plain_requests(trained_bundles.source, ranker.transforms))
    moment_us = now_us()
    monkeypatch.setattr("reqdedup.serving.inputs.now_us", lambda: moment_us)
    untold = replace(request, request={n: x for n, x in request.request.items() if n != REQUEST_TS})
    told = replace(request, request={**untold.request, REQUEST_TS: moment_us})
    assert np.array_equal(stacked(ranker.rank(untold)), stacked(ranker.rank(told)))
    with pytest.raises(RequestError, match=r"request\.request_ts"):
        ranker.rank(replace(request, request={**untold.request, REQUEST_TS: "noon"}))
