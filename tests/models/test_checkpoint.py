"""The checkpoint's format, literally: what this version writes, what older ones wrote, what a newer one would."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch

from reqdedup.models import DCAT, DCATConfig, TwoTower, TwoTowerConfig
from reqdedup.models.checkpoint import CHECKPOINT_FORMAT, load_checkpoint, load_model, save_checkpoint
from reqdedup.training import TrainingConfig
from reqdedup.training.loop import read_run
from reqdedup.training.rank_run import run_rank
from tests.training.logs import random_log, with_signal

MODEL = {
    "history_categories": ["action"],
    "request_categories": [],
    "request_vectors": [["user_embedding", 3]],
    "request_numbers": [],
    "item_categories": [],
    "item_table_rows": 64,
    "category_table_rows": 8,
    "width": 8,
    "num_heads": 2,
    "num_layers": 1,
    "ffn_width": 128,
    "feature_width": 16,
    "max_history": 512,
    "positions": "learned",
    "positions_from": "start",
    "history_attention": "causal",
    "share_context": "request",
    "hidden_widths": [4],
}
TRAINING = {
    "num_steps": 2,
    "requests_per_step": 12,
    "learning_rate": 0.01,
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "device": "cpu",
    "precision": "float32",
    "world_size": 1,
    "seed": 0,
    "sync_batchnorm": True,
    "shuffle": "requests",
    "buffer_requests": 2048,
    "chunk_rows": None,
    "prefetch_batches": 2,
    "history_stride": 0,
    "positive_label": "click",
    "temperature": 0.1,
    "mask_same_user": True,
    "same_user_share": 0.0,
    "log_q": "exact",
    "gather_negatives": True,
    "held_out": 0.1,
    "eval_requests": 2048,
    "catalogue_items": 10000,
    "checkpoint_every": 200,
    "collective_timeout_s": 300.0,
}
FORMAT_1 = {
    "dcat": {**TRAINING, "model": {"kind": "dcat", **MODEL, "labels": ["click"]}},
    "two_tower": {**TRAINING, "model": {"kind": "two_tower", **MODEL, "output_width": 64}},
}
VERSION_0_1_0 = {
    "dcat": {**TRAINING, "task": "ranking", "model": {**MODEL, "labels": ["click"]}},
    "two_tower": {**TRAINING, "task": "retrieval", "model": {**MODEL, "output_width": 64}},
}
KINDS = {"dcat": (DCATConfig, DCAT), "two_tower": (TwoTowerConfig, TwoTower)}


@pytest.mark.parametrize("kind", FORMAT_1)
def test_a_training_configuration_is_written_as_ever_and_that_of_0_1_0_is_read(kind):
    config = TrainingConfig.from_dict(FORMAT_1[kind])
    assert isinstance(config.model, KINDS[kind][0])
    written = json.loads(config.to_json())
    assert {name: written[name] for name in FORMAT_1[kind]} == FORMAT_1[kind]
    assert TrainingConfig.from_dict(VERSION_0_1_0[kind]) == config


@pytest.mark.slow
def test_a_checkpoint_has_these_keys(tmp_path):
    config = TrainingConfig.from_dict(FORMAT_1["dcat"])
    run_rank(lambda progress: None, config, with_signal(random_log()), str(tmp_path))
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert sorted(state) == [
        "config", "format", "learned_until_us", "loaders", "losses", "metrics", "model", "optimizer", "rows",
        "snapshot_id", "step", "tasks", "watch",
    ]  # fmt: skip
    assert state["format"] == CHECKPOINT_FORMAT == 3
    assert json.loads(json.dumps(state["config"])) == json.loads(config.to_json())
    assert sorted(state["loaders"][0]) == ["format", "order", "position"]
    assert sorted(state["loaders"][0]["order"]) == [
        "buffer_bytes", "buffer_requests", "chunk_rows", "columns", "cut", "num_wanted", "positive_label", "rank", "requests_per_batch",
        "rows_per_batch", "seed", "shuffle", "source", "users", "world_size",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", VERSION_0_1_0)
def test_a_model_of_0_1_0_is_loaded_and_its_run_not_resumed(kind, tmp_path):
    config = TrainingConfig.from_dict(VERSION_0_1_0[kind])
    _, model_class = KINDS[kind]
    weights = model_class(config.model).state_dict()
    old = {"config": VERSION_0_1_0[kind], "model": weights, "step": 1, "snapshot_id": None, "optimizer": {}}
    loader = {"position": {"epoch": 0, "block": 0, "window": 0, "request": 3}, "order": {"row_groups": [1, 2]}}
    save_checkpoint(tmp_path / "checkpoint.pt", {**old, "loaders": [loader], "log_q": {}, "rows": 9, "losses": [0.7]})
    model = load_model(tmp_path / "checkpoint.pt")
    assert isinstance(model, model_class)
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    with pytest.raises(
        ValueError, match="a checkpoint of format 3 required to resume, found 0, of an earlier version; train anew"
    ):
        run_rank(lambda progress: None, config, with_signal(random_log()), str(tmp_path), None, True)


def test_a_newer_format_is_refused_by_name(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"format": 4, "config": {}, "model": {}, "step": 0})
    with pytest.raises(ValueError, match=r"c\.pt: format 3 or older required, found 4; read it with a newer reqdedup"):
        load_checkpoint(tmp_path / "c.pt")
    run = {"format": 2, "training": FORMAT_1["dcat"], "paths": [], "schema": [], "out_dir": "x"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match=r"run\.json: format 1 or older required, found 2"):
        read_run(tmp_path / "run.json")


def test_what_is_no_model_of_ours_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    for model, weights, message in (
        ({"kind": "nobody"}, {}, "kind one of dcat, early_ranker, foundation, two_tower required, found 'nobody'"),
        ({"kind": "dcat", "colour": 1}, {}, "a model of kind dcat: a field is unknown or missing"),
        ({"kind": "dcat"}, {}, "weights of the configured model required, found others"),
    ):
        save_checkpoint(path, {"format": 1, "config": {"model": model}, "model": weights, "step": 0})
        with pytest.raises(ValueError, match=message):
            load_model(path)
    torch.save({"config": Unpickled(), "model": {}, "step": 0}, path)
    with pytest.raises(ValueError, match="required, found something else: Weights only"):
        load_model(path)
    assert not Unpickled.calls
    path.write_text("a text")
    with pytest.raises(ValueError, match=r"required, found something else: no file of torch\.save"):
        load_model(path)


class Unpickled:
    calls: ClassVar[list[int]] = []

    def __reduce__(self):
        return Unpickled.calls.append, (1,)


@pytest.mark.slow
def test_resuming_with_another_configuration_names_the_difference(tmp_path):
    config, log = TrainingConfig.from_dict(FORMAT_1["dcat"]), with_signal(random_log())
    run_rank(lambda progress: None, config, log, str(tmp_path))
    for changes, named in (({"seed": 1}, "seed = 0, found 1"), ({"history_stride": 3}, "history_stride = 0, found 3")):
        other = TrainingConfig.from_dict({**FORMAT_1["dcat"], **changes})
        with pytest.raises(ValueError, match=named):
            run_rank(lambda progress: None, other, log, str(tmp_path), None, True)
    wider = {**FORMAT_1["dcat"], "model": {**FORMAT_1["dcat"]["model"], "width": 16}}
    with pytest.raises(ValueError, match=r"model\.width = 8, found 16"):
        run_rank(lambda progress: None, TrainingConfig.from_dict(wider), log, str(tmp_path), None, True)
