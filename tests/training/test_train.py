from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from reqdedup.models import DCAT, Bundle, DCATConfig, TwoTowerConfig
from reqdedup.models.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
from reqdedup.training import RequestLoader, TrainingConfig, load_model, read_losses, train, training_report
from reqdedup.training.launch import RankError, run_ranks
from reqdedup.training.loop import BUNDLE_NAME, RUN_NAME, read_run
from reqdedup.training.rank_run import run_rank
from tests.training import ranks
from tests.training.logs import random_log, with_signal

pytestmark = pytest.mark.slow

SIZES = {"width": 16, "num_layers": 1, "item_table_rows": 512, "category_table_rows": 16, "hidden_widths": (16,)}


def _config(task, schema, **options):
    if task == "ranking":
        model = DCATConfig.from_schema(schema, **SIZES)
    else:
        model = TwoTowerConfig.from_schema(schema, output_width=8, **SIZES)
    defaults = {
        "num_steps": 40,
        "requests_per_step": 24,
        "learning_rate": 0.02,
        "held_out": 0.2,
        "checkpoint_every": 10,
        "max_epochs": 0,
        "table_learning_rate": 0.05,
    }
    return TrainingConfig(model=model, **{**defaults, **options})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    log = with_signal(random_log(num_groups=6, requests_per_group=30, largest_fan_out=8, seed=2))
    return log.write(tmp_path_factory.mktemp("log") / "log.parquet")


def _ranking(source):
    """After so few steps the AUC of seeds 0 to 5 lies between 0.54 and 0.79."""
    return _config("ranking", source.schema, seed=3)


@pytest.fixture(scope="module")
def ranking(source, tmp_path_factory):
    """(out_dir, result, progress) of a finished run of two ranks."""
    out_dir, progress = tmp_path_factory.mktemp("ranking"), []
    config = _ranking(source)
    return out_dir, train(config, source, out_dir=out_dir, progress=progress.append), progress


def test_ranking_learns_and_leaves_everything_behind(ranking, source):
    out_dir, result, progress = ranking
    assert result.steps == len(result.losses) == 40
    assert result.last_loss < result.first_loss
    assert result.metrics["auc_click"] > 0.6
    assert result.metrics["eval_rows"] > 50
    assert result.epochs > 1
    assert result.peak_memory_bytes > 50e6
    assert 0 < result.mean_wait_s <= result.longest_wait_s < result.training_s
    assert 0 <= result.mean_core_busy <= result.busiest_core_busy <= 1
    assert json.loads((out_dir / "result.json").read_text())["longest_wait_s"] == result.longest_wait_s
    assert progress[0].stage == "reading"
    assert progress[-1].stage == "evaluating"
    assert "step 40/40" in str([p for p in progress if p.stage == "training"][-1])
    assert all(p.step <= p.num_steps for p in progress)
    assert read_losses(result.metrics_file) == pytest.approx(result.losses, rel=1e-4)
    figures = {row["metric"]: row for row in training_report({"ranking_model": out_dir}).to_pylist()}
    assert figures["auc_click"]["value"] == result.metrics["auc_click"]
    assert figures["auc_click"]["chance"] == 0.5
    state = load_checkpoint(result.checkpoint)
    assert (state["step"], state["snapshot_id"], len(state["loaders"])) == (40, None, 2)
    model = load_model(result.checkpoint)
    assert isinstance(model, DCAT)
    assert not model.training
    bundle = Bundle.load(out_dir / BUNDLE_NAME)
    assert all(torch.equal(x, state["model"][name]) for name, x in bundle.model.state_dict().items())
    run = json.loads((out_dir / RUN_NAME).read_text())
    reading = ["merge_pieces", "known_columns", "field_ids", "known_fields", "item_files"]
    assert list(run) == ["format", "training", "paths", "schema", *reading, "store", "snapshot_id", "out_dir"]
    assert (run["format"], run["training"]["model"]["kind"]) == (1, "dcat")
    assert json.loads((out_dir / "result.json").read_text())["format"] == 1
    config, files, directory, _ = read_run(out_dir / RUN_NAME)
    assert config == _ranking(source)
    assert (files.paths, files.schema, directory) == (source.paths, source.schema, out_dir.resolve())


def test_a_killed_run_says_so_and_resumes_with_the_same_losses_bit_for_bit(ranking, source, tmp_path):
    _, uninterrupted, _ = ranking
    config = _ranking(source)
    started = time.monotonic()
    with pytest.raises(RankError, match="rank 1 of 2 failed:\nit was killed by SIGKILL") as raised:
        run_ranks(ranks.train_and_die, config, source, tmp_path, 27, world_size=2)
    assert raised.value.rank == 1
    assert time.monotonic() - started < 60
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME)["step"] == 20
    assert len(read_losses(tmp_path / "metrics.csv")) == 27
    resumed = train(config, source, out_dir=tmp_path, resume=True)
    assert resumed.losses == uninterrupted.losses
    assert resumed.metrics == uninterrupted.metrics
    assert len(read_losses(tmp_path / "metrics.csv")) == 40
    wanted = load_checkpoint(uninterrupted.checkpoint)
    found = load_checkpoint(resumed.checkpoint)
    assert json.loads((tmp_path / "result.json").read_text())["snapshot_id"] is None

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(ValueError, match="snapshot_id = None, found 7"):
        train(config, source, out_dir=tmp_path, resume=True, snapshot_id=7)
    assert files() == before
    with pytest.raises(
        RankError, match="FloatingPointError: ranking: the loss became"
    ):  # before its first checkpoint, so that the earlier model is still there
        train(replace(config, learning_rate=1e38, checkpoint_every=30, world_size=1), source, out_dir=tmp_path)
    kept = [tmp_path / name for name in ("run.json", "result.json", "checkpoint.pt", f"{BUNDLE_NAME}/manifest.json")]
    assert all(path.read_bytes() == before[path] for path in kept)
    assert all(torch.equal(found["model"][name], wanted["model"][name]) for name in wanted["model"])
    assert found["loaders"] == wanted["loaders"]


@pytest.mark.soak
def test_retrieval_learns_under_torchrun_from_a_run_file(source, tmp_path):
    """On one rank the mean log-rank of seeds 0 to 5 is 0.09, 0.35, 0.38, 0.41, 0.39 and 0.23 below chance."""
    config = _config("retrieval", source.schema, num_steps=60, seed=3)
    run = {
        "training": config.to_dict(),
        "paths": source.paths,
        "schema": json.loads(source.schema.to_json()),
        "out_dir": str(tmp_path),
    }
    (tmp_path / RUN_NAME).write_text(json.dumps(run))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "reqdedup.training", str(tmp_path / RUN_NAME)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    losses = read_losses(tmp_path / "metrics.csv")
    assert len(losses) == 60
    assert losses[-6:].mean() < losses[:6].mean()
    assert metrics["mean_log_rank"] < metrics["mean_log_rank_chance"] - 0.1
    state = load_checkpoint(tmp_path / CHECKPOINT_NAME)
    bundle = Bundle.load(tmp_path / BUNDLE_NAME)
    assert all(torch.equal(x, state["model"][name]) for name, x in bundle.model.state_dict().items())
    assert bundle.item_vectors.shape == (len(bundle.items), 8)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {name: result[name] for name in metrics} == metrics
    assert result["judgement"]["figures"][0]["baselines"]
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    for name, changes, said in (
        ("bad.json", {"num_steps": 4, "learning_rate": 1e38}, "the loss became"),
        ("one.json", {"world_size": 1}, "1 ranks required, the world_size of the run, found 2"),
    ):
        (tmp_path / name).write_text(json.dumps({**run, "training": {**run["training"], **changes}}))
        done = subprocess.run(
            [*torchrun, "-m", "reqdedup.training", str(tmp_path / name)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode
        assert said in done.stderr
        assert "terminate called" not in done.stderr
        assert {path: path.read_bytes() for path in kept} == kept, "a run that failed replaces nothing"


def test_matrix_products_in_bfloat16_train_as_well_and_keep_float32_weights(source, tmp_path):
    options = {"num_steps": 40, "world_size": 1, "warmup_steps": 1, "table_optimizer": "adamw"}
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = _config("ranking", source.schema, precision=precision, **options)
        config = replace(config, model=replace(config.model, item_numbers=()))  # noise, learned by heart in 40 steps
        result = run_rank(lambda event: None, config, source, str(tmp_path / precision))
        losses[precision] = result.losses
        model = load_checkpoint(tmp_path / precision / CHECKPOINT_NAME)["model"]
        assert {x.dtype for x in model.values() if x.is_floating_point()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.03)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_asked_for_clearly(source, tmp_path):
    config = _config("ranking", source.schema, device="cuda")
    with pytest.raises(ValueError, match=r"a GPU for each rank of this machine required, found 0 for rank 0 of 1; set"):
        run_rank(lambda event: None, config, source, str(tmp_path))
    with pytest.raises(ValueError, match=r"device one of \('cpu', 'cuda'\) required, found 'tpu'"):
        _config("ranking", source.schema, device="tpu")


def test_an_epoch_is_the_limit_whatever_the_steps(source, tmp_path):
    config = _config("ranking", source.schema, world_size=1, max_epochs=2, requests_per_step=16)
    result = run_rank(lambda event: None, config, source, str(tmp_path))
    assert (result.stopped_by, result.epochs) == ("epochs", 2)
    assert result.steps == config.steps_of(sum(1 for _ in _training_requests(source, config))) < 40
    rates = [float(row["learning_rate"]) for row in _rows(tmp_path)]
    assert rates[-1] == pytest.approx(config.learning_rate / result.steps, rel=1e-3), "decayed for the steps there are"


def _training_requests(source, config):
    loader = RequestLoader(source, requests_per_batch=1, columns=(), users=config.splits(()).train)
    return iter(loader)


def _rows(out_dir):
    with (out_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_weights_on_the_validation_part_are_kept(source, tmp_path):
    options = {"validation": 0.2, "validate_every": 5, "patience": 2, "dropout": 0.1, "checkpoint_every": 5}
    model = DCATConfig.from_schema(source.schema, dropout=options.pop("dropout"), **SIZES)
    config = replace(
        _config("ranking", source.schema, num_steps=200, hide_events=0.2, clip_norm=1.0, world_size=1, **options),
        model=model,
    )
    result = train(config, source, out_dir=tmp_path)
    figures = dict(result.validations)
    assert result.best_step == max(figures, key=lambda step: (figures[step], -step))
    assert result.stopped_by in ("patience", "steps")
    if result.stopped_by == "patience":
        assert sum(step > result.best_step for step in figures) == 2
    saved = json.loads((tmp_path / "result.json").read_text())
    assert (saved["best_step"], saved["stopped_by"]) == (result.best_step, result.stopped_by)
    kept = load_checkpoint(result.checkpoint)
    assert all(torch.equal(x, kept["watch"]["weights"][name]) for name, x in kept["model"].items())


@pytest.mark.soak  # beside a thousand steps of each task in test_memory.py
def test_memory_does_not_grow_over_the_epochs(tmp_path):
    log = random_log(num_groups=12, requests_per_group=60, largest_fan_out=8, seed=4)
    source = log.write(tmp_path / "log.parquet")
    config = _config("ranking", source.schema, num_steps=400, world_size=1, checkpoint_every=50)
    result = run_rank(lambda event: None, config, source, str(tmp_path))
    assert result.epochs > 10
    with (tmp_path / "metrics.csv").open(newline="") as file:
        memory = [int(row["memory_bytes"]) for row in csv.DictReader(file)]
    assert max(memory[200:]) < max(memory[:200]) + 4e6


def test_a_loss_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(source, tmp_path):
    config = _config("ranking", source.schema, world_size=1, learning_rate=1e35, warmup_steps=4, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"ranking: the loss became \w+ at step \d+; the checkpoint"):
        run_rank(lambda event: None, config, source, str(tmp_path))
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME)["step"] >= 1


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / CHECKPOINT_NAME
    save_checkpoint(path, {"config": {}, "model": {}, "step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"config": {}, "model": {}, "step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT_NAME]


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a checkpoint required, found no file"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "other.pt").write_bytes(b"something")
    with pytest.raises(ValueError, match=r"a checkpoint of reqdedup\.training required"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_configuration_survives_json_and_refuses_what_it_does_not_know(source):
    for task in ("ranking", "retrieval"):
        config = _config(task, source.schema)
        assert TrainingConfig.from_dict(json.loads(config.to_json())) == config
    with pytest.raises(ValueError, match="colour"):
        TrainingConfig.from_dict({**config.to_dict(), "colour": "red"})
    with pytest.raises(
        ValueError, match="kind one of dcat, early_ranker, foundation, two_tower required, found 'cooking'"
    ):
        TrainingConfig.from_dict({**config.to_dict(), "model": {"kind": "cooking"}})
    with pytest.raises(ValueError, match="a request per rank"):
        _config("ranking", source.schema, requests_per_step=1)
    with pytest.raises(ValueError, match="0 <= share < 1 required"):
        _config("retrieval", source.schema, same_user_share=1.0)


def test_the_learning_rate_warms_up_and_decays_to_zero(source):
    config = _config("ranking", source.schema, num_steps=100, warmup_steps=10)
    rates = [config.rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[-1] == pytest.approx(0.01)
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
