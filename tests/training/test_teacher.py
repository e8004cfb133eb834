"""Distillation: the loss is the plain cross-entropy against mixed targets, and a student learns from a DCAT."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from reqdedup.models import DCATConfig, EarlyRankerConfig
from reqdedup.models.checkpoint import load_model
from reqdedup.serving import Bundle, Ranker
from reqdedup.training import TrainingConfig, evaluate_run, train
from reqdedup.training.loop import read_run
from reqdedup.training.rank_run import RankRun, run_rank
from reqdedup.training.teacher import Teacher
from reqdedup.training.written import config_for
from tests.training.logs import random_log, with_signal

pytestmark = pytest.mark.slow
SIZES = {"width": 8, "num_layers": 1, "item_table_rows": 64, "category_table_rows": 16, "hidden_widths": (8,)}
RUN = {"max_epochs": 0, "requests_per_step": 16, "learning_rate": 0.02, "world_size": 1, "held_out": 0.2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return with_signal(random_log()).write(tmp_path_factory.mktemp("log") / "log.parquet")


@pytest.fixture(scope="module")
def teacher(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    config = TrainingConfig(model=DCATConfig.from_schema(source.schema, **SIZES), num_steps=8, **RUN)
    run_rank(lambda _: None, config, source, str(folder))
    return folder / "checkpoint.pt"


def student(schema, teacher, **changes) -> TrainingConfig:
    values = {"num_steps": 8, "teacher": str(teacher), "teacher_weight": 0.7, **RUN, **changes}
    model = {**SIZES, "kind": "early_ranker", "output_width": 8}
    return config_for("ranking", schema, {**values, "model": model}, said_in="a test")


def test_the_loss_is_the_cross_entropy_against_mixed_targets(source, teacher, tmp_path):
    run = RankRun(lambda _: None, student(source.schema, teacher), source, tmp_path, None)
    batch = next(iter(run.loader))
    logits = run.model(batch)
    loss_sum, num_terms = run.task.loss(logits, batch)
    says = load_model(teacher)(batch)[:, 0].sigmoid().tolist()
    terms = []
    for label, taught, logit in zip(batch.row["click"].tolist(), says, logits[:, 0].tolist(), strict=True):
        if not math.isnan(label):
            target, p = 0.3 * label + 0.7 * taught, 1 / (1 + math.exp(-logit))
            terms.append(-target * math.log(p) - (1 - target) * math.log(1 - p))
    assert num_terms == len(terms)
    assert float(loss_sum.detach()) == pytest.approx(sum(terms), rel=1e-4)


def test_a_student_trains_is_no_dcat_to_a_server_and_needs_no_teacher_to_be_judged(
    source, teacher, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(teacher, "teacher.pt")
    result = train(student(source.schema, "teacher.pt", baselines=False), source, out_dir=tmp_path)
    assert sum(result.losses[-3:]) < sum(result.losses[:3])
    assert 0 <= result.metrics["auc_click"] <= 1
    assert read_run(tmp_path / "run.json")[0].teacher == str(tmp_path / "teacher.pt"), "a folder's name of that day"
    (tmp_path / "teacher.pt").unlink()
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path).metrics == pytest.approx(result.metrics)
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["kind"] == "early_ranker"
    with pytest.raises(ValueError, match=r"whose contexts can be kept required \(dcat\), found early_ranker"):
        Ranker.of(Bundle.load(tmp_path / "bundle"))


def test_a_teacher_that_says_something_else_is_refused(source, teacher, tmp_path):
    model = EarlyRankerConfig.from_schema(source.schema, **SIZES, max_history=7)
    config = TrainingConfig(model=model, num_steps=1, teacher=str(teacher), **RUN)
    with pytest.raises(ValueError, match="max_history = 7, found 512"):
        RankRun(lambda _: None, config, source, tmp_path, None)
    with pytest.raises(ValueError, match="cross_entropy' required, found ranking and pairwise"):
        student(source.schema, teacher, ranking_loss="pairwise")
    with pytest.raises(ValueError, match=r"teacher_weight in \[0, 1\] required, found 1.5"):
        student(source.schema, teacher, teacher_weight=1.5)
    with pytest.raises(
        ValueError, match=r"model\.kind: one of dcat, early_ranker required for ranking, found 'towers'"
    ):
        config_for("ranking", source.schema, {"model": {"kind": "towers"}}, said_in="a.toml")


def test_labels_that_the_teacher_does_not_know_are_refused(source, teacher):
    with pytest.raises(ValueError, match="a teacher of the labels save required, found one without save"):
        Teacher(str(teacher), EarlyRankerConfig(labels=("save",)), torch.device("cpu"))
