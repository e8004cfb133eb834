"""A bundle again from what training left, by the command line; and the items that go into it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from reqdedup import cli
from reqdedup.models import Bundle, DCATConfig, TwoTowerConfig
from reqdedup.models.bundle import MANIFEST
from reqdedup.models.checkpoint import load_checkpoint
from reqdedup.models.known_vectors import fill_known_vectors
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.ranking.self_test import self_test
from reqdedup.training import RequestLoader, TrainingConfig
from reqdedup.training.export import export_checkpoint, read_items
from reqdedup.training.plan import source_to_dict
from reqdedup.training.rank_run import run_rank
from tests.serving.conftest import SIZES
from tests.storage.small_log import log_schema, make_log, to_batches


@pytest.fixture
def run(trained_bundles, tmp_path):
    """The out_dir of a run that was stopped after its checkpoint."""
    folder, checkpoint = tmp_path / "run", trained_bundles.checkpoints["retrieval"]
    folder.mkdir()
    shutil.copy(checkpoint, folder)
    state = load_checkpoint(checkpoint)
    files = source_to_dict(trained_bundles.source.files())
    run = {
        "format": 1,
        "training": state["config"],
        **files,
        "snapshot_id": state["snapshot_id"],
        "out_dir": str(folder),
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.mark.slow
def test_export_writes_what_training_wrote(run, trained_bundles, tmp_path, capsys):
    out = tmp_path / "bundles" / "retrieval"
    assert cli.main(["export", str(run), str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    for path in trained_bundles.retrieval.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    bundle = Bundle.load(out)
    assert said["fingerprint"] == bundle.fingerprint
    assert said["snapshot_id"] == trained_bundles.source.snapshot_id
    assert "recent_event_count" in said["inputs"]
    assert cli.main(["export", str(run), str(out)]) == 0
    assert f"{out}: retrieval, {len(bundle.items):,} items" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_one_sentence(run, tmp_path, capsys):
    for folder, out, said in (
        (tmp_path, tmp_path / "out", "run.json: a run file (JSON) required, found no file"),
        (run, run, "a new folder, or a bundle to replace, required, found other files"),
    ):
        assert cli.main(["export", str(folder), str(out)]) == 2
        assert said in capsys.readouterr().err
    (run / "checkpoint.pt").unlink()
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 2
    assert "a checkpoint required, found no file" in capsys.readouterr().err
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_items_are_counted_over_all_rows_and_keep_what_is_their_own(trained_bundles):
    rows = trained_bundles.source.to_arrow(["item_id", "request_ts", "item_category"]).to_pylist()
    counts = Counter(row["item_id"] for row in rows)
    category = {row["item_id"]: row["item_category"] for row in rows}
    first_seen: dict[int, int] = {}
    for row in rows:
        ts = int(row["request_ts"].timestamp() * 1e6 + 0.5)
        first_seen[row["item_id"]] = min(ts, first_seen.get(row["item_id"], ts))
    ranking, retrieval = Bundle.load(trained_bundles.ranking), Bundle.load(trained_bundles.retrieval)
    assert "position" in ranking.config.item_categories
    for bundle in (ranking, retrieval):
        items = bundle.items
        assert items.item_id_V.tolist() == sorted(counts)
        assert items.count_V.tolist() == [counts[item] for item in sorted(counts)]
        assert items.first_seen_V.tolist() == [first_seen[item] for item in sorted(counts)]
        assert list(items.columns) == ["item_category"]  # a position belongs to an impression
        assert items.columns["item_category"].tolist() == [category[item] for item in sorted(counts)]
        assert items.keys is None
    np.testing.assert_allclose(np.linalg.norm(retrieval.item_vectors, axis=1), 1, rtol=1e-5)
    assert ranking.item_vectors is None


class _Batches:
    """A source without row groups."""

    def __init__(self, batches):
        self.schema, self._batches = log_schema(), batches

    def batches(self, columns=None, users=None):
        for batch in self._batches:
            yield batch.select(columns)


def test_texts_of_a_log_stay_the_keys_of_its_items():
    requests = make_log(num_users=12, seed=3)
    requests += [{**request, "request_ts": request["request_ts"] - 5, "seed": 1} for request in requests[:9]]
    batches = to_batches(requests, size=2)
    rows = pa.Table.from_batches(batches).select(["item_id", "item_key", "request_ts", "item_category"]).to_pylist()
    first = {}
    for row in rows:
        if row["item_id"] not in first or row["request_ts"] < first[row["item_id"]]["request_ts"]:
            first[row["item_id"]] = row
    for config in (DCATConfig(item_categories=("item_category",)), TwoTowerConfig(item_categories=("item_category",))):
        items = read_items(_Batches(batches), config, impressions_too=isinstance(config, TwoTowerConfig))
        assert items.item_id_V.tolist() == sorted(first)
        assert items.keys == tuple(first[item]["item_key"] or "" for item in sorted(first))
        if isinstance(config, TwoTowerConfig):
            assert items.columns["item_category"].tolist() == [first[i]["item_category"] for i in sorted(first)]
        else:  # it differs between the rows of an item here
            assert not items.columns
    known = next(key for key, count in Counter(items.keys).items() if key and count == 1)
    assert items.ids_of([known]).tolist() == [items.item_id_V[items.keys.index(known)]]
    with pytest.raises(ValueError, match="found ''"):
        items.ids_of([""])


def test_a_bundle_with_int8_tables_is_smaller_and_answers_nearly_the_same(trained_bundles, tmp_path):
    checkpoint = trained_bundles.checkpoints["ranking"]
    folder = export_checkpoint(checkpoint, trained_bundles.source, tmp_path / "int8", int8_tables=True)
    small, whole = Bundle.load(folder), Bundle.load(trained_bundles.ranking)
    assert small.fingerprint != whole.fingerprint
    sizes = [(one.folder / "weights.safetensors").stat().st_size for one in (small, whole)]
    assert sizes[0] < 0.75 * sizes[1]
    options = {"columns": whole.config.columns, "cut": whole.transforms.cut, "shuffle": "none"}
    batch = next(iter(RequestLoader(trained_bundles.source, requests_per_batch=32, **options)))
    given, found = whole.model.predict(batch), small.model.predict(batch)
    assert not torch.equal(found, given)
    assert float((found - given).std() / given.std()) < 0.05
    assert self_test(Ranker.of(small)).holds


@pytest.mark.slow
def test_a_model_reads_the_vectors_of_another_s_items_and_takes_them_to_its_server(trained_bundles, tmp_path):
    source = trained_bundles.source
    options = {"num_steps": 2, "requests_per_step": 16, "learning_rate": 0.02, "world_size": 1, "eval_requests": 8}
    model = DCATConfig.from_schema(source.schema, item_vector_width=8, **SIZES)
    config = TrainingConfig(model=model, item_vectors=str(trained_bundles.retrieval), **options)
    run_rank(lambda _: None, config, source, str(tmp_path / "run"))
    bundle = Bundle.load(export_checkpoint(tmp_path / "run" / "checkpoint.pt", source, tmp_path / "bundle"))
    given = Bundle.load(trained_bundles.retrieval)
    known = bundle.model.embedding.known
    assert np.array_equal(known.item_id_V.numpy(), given.items.item_id_V)
    assert np.array_equal(known.vector_VW.numpy(), given.item_vectors)
    assert self_test(Ranker.of(bundle)).holds
    others = replace(config, seed=1)
    with pytest.raises(ValueError, match=r"retrieval: a training that did not read .*seed = 1.*found.*seed = 0"):
        run_rank(lambda _: None, others, source, str(tmp_path / "others"))
    with pytest.raises(ValueError, match="a bundle with vectors of its items"):
        fill_known_vectors(bundle.model, trained_bundles.ranking)
    with pytest.raises(ValueError, match="item_vectors and the model's item_vector_width required together"):
        TrainingConfig(model=model, **options)
