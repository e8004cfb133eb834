"""What a server answers is what the model gives on the loader's batch of the table, side feature included, in all bits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from reqdedup import cli
from reqdedup.models import load_model
from reqdedup.models.bundle import Bundle
from reqdedup.sequences.store import Window
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.ranking.self_test import self_test
from reqdedup.serving.requests import RequestError
from reqdedup.training import RequestLoader
from tests.serving.rankers import stacked
from tests.serving.table_requests import plain_requests


@pytest.fixture(scope="module")
def table_logits(trained_bundles):
    """request_id -> logits [M, labels] of the checkpoint's model on the loader's batch."""
    model = load_model(trained_bundles.checkpoints["ranking"])
    bundle = Bundle.load(trained_bundles.ranking)
    options = {"columns": model.config.columns, "cut": bundle.transforms.cut, "shuffle": "none"}
    logits = {}
    for batch in RequestLoader(trained_bundles.source, requests_per_batch=16, **options):
        rows = batch.row_offsets_R1.diff().tolist()
        logits |= zip(batch.request["request_id"].tolist(), model.predict_exact(batch).split(rows), strict=True)
    return {request_id: logits_M.numpy() for request_id, logits_M in logits.items()}


@pytest.mark.slow
def test_requests_of_the_table_get_the_bits_of_its_batches(trained_bundles, table_logits):
    bundle = Bundle.load(trained_bundles.ranking)
    assert "recent_event_count" in {column.name for column in bundle.transforms.request_columns}
    requests = list(plain_requests(trained_bundles.source, bundle.transforms))
    assert {request_id for request_id, _ in requests} == table_logits.keys()
    for options in ({}, {"cache": ContextCache(100_000)}):
        ranker = Ranker.of(bundle, **options)
        for first in range(0, len(requests), 7):
            together = requests[first : first + 7]
            answers = ranker.step([request for _, request in together])
            for (request_id, _), answer in zip(together, answers, strict=True):
                assert np.array_equal(stacked(answer), table_logits[request_id])
                assert answer.model == bundle.fingerprint
        assert ranker.cache.counts.reuse > 0.1


def test_a_column_less_or_changed_and_an_event_more_or_less_are_noticed(trained_bundles, table_logits):
    bundle = Bundle.load(trained_bundles.ranking)
    ranker = Ranker.of(bundle)
    request_id, request = max(plain_requests(trained_bundles.source, bundle.transforms), key=lambda x: x[1].history.end)
    window = request.history
    fewer = Window({name: x[:-1] for name, x in window.columns.items()}, window.start, window.end - 1, window.version)
    breaks = {
        "another count": replace(request, request={**request.request, "recent_event_count": 10**6}),
        "an event less": replace(request, history=fewer),
        "swapped candidates": replace(
            request, candidates={**request.candidates, "item_id": request.candidates["item_id"][::-1]}
        ),
    }
    for name, broken in breaks.items():
        assert not np.array_equal(stacked(ranker.rank(broken)), table_logits[request_id]), name
    without = {name: x for name, x in request.request.items() if name != "recent_event_count"}
    with pytest.raises(RequestError, match="recent_event_count required"):
        ranker.rank(replace(request, request=without))


def test_the_self_test_holds_for_a_trained_bundle(trained_bundles):
    assert self_test(Ranker.of(Bundle.load(trained_bundles.ranking))).holds


def test_a_ranker_needs_the_bundle_of_a_ranking_model(trained_bundles):
    with pytest.raises(ValueError, match="bundle of a ranking model required, found one of retrieval"):
        Ranker.of(Bundle.load(trained_bundles.retrieval))


@pytest.mark.slow
def test_score_writes_the_same_bits_of_every_row(trained_bundles, table_logits, tmp_path, capsys, monkeypatch):
    catalog = trained_bundles.sample.catalog
    for name, value in {"name": catalog.name, **catalog.properties}.items():
        monkeypatch.setenv(f"REQDEDUP_CATALOG__{name.upper()}", value)
    out = tmp_path / "scores.parquet"
    asked = ["score", "lake.sample", "--bundle", str(trained_bundles.ranking), "--out", str(out), "--json"]
    assert cli.main(asked) == 0
    said = json.loads(capsys.readouterr().out)
    table = pq.read_table(out)
    assert (said["rows"], said["requests"]) == (table.num_rows, len(table_logits))
    assert said["reuse"] > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    order = dict.fromkeys(table["request_id"].to_pylist())
    wanted = np.concatenate([table_logits[request_id] for request_id in order])
    labels = table.column_names[3:]
    assert np.array_equal(np.stack([table[label].to_numpy() for label in labels], axis=1), wanted)
    assert cli.main([*asked[:3], str(trained_bundles.retrieval), *asked[4:]]) == 2
    assert "bundle of a ranking model required" in capsys.readouterr().err
    assert cli.main([*asked[:4], "--json"]) == 2
    assert "either --out FILE or --to NAMESPACE.NAME required" in capsys.readouterr().err
    for name, said in (("nope", "namespace.name required, found 'nope'"), ("lake.items", "a name other than items")):
        assert cli.main([*asked[:4], "--to", name]) == 2
        assert said in capsys.readouterr().err
    assert cli.main([*asked[:4], "--to", "scored.by_ranking", "--json"]) == 0
    scored = catalog.load_table("scored.by_ranking")
    try:
        assert len(scored.snapshots()) == 1
        assert scored.scan().to_arrow().cast(table.schema).equals(table)
        assert cli.main([*asked[:4], "--to", "scored.by_ranking"]) == 2
        assert "name of a new table required" in capsys.readouterr().err
        assert len(scored.refresh().snapshots()) == 1
    finally:
        catalog.drop_table("scored.by_ranking")
