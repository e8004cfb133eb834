"""A new kind of model is one folder and one line of the registry: built, trained, written and read without another change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from reqdedup.models import registry
from reqdedup.models.checkpoint import load_model
from reqdedup.models.config import ModelConfig
from reqdedup.models.inputs import ItemEmbedding
from reqdedup.models.registry import ModelKind
from reqdedup.training import TrainingConfig
from reqdedup.training.rank_run import run_rank
from tests.models.batches import dcat_config, random_batch, two_tower_config
from tests.training.logs import random_log, with_signal


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ModelConfig):
    """A model of the candidate alone."""

    labels: tuple[str, ...] = ("click",)
    bias: float = 0.5


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.bias = config.bias
        self.embedding, self.out = ItemEmbedding(config), nn.Linear(config.width, len(config.labels))

    def forward(self, batch):
        return self.out(self.embedding.candidates(batch.item_id_B, batch.row)) + self.bias


@pytest.mark.parametrize("config", [dcat_config(), two_tower_config()], ids=lambda config: type(config).__name__)
def test_a_kind_builds_its_model_and_its_twin_and_survives_json(config):
    kind = registry.kind_of(config)
    assert registry.config_from_dict(registry.config_to_dict(config)) == config
    model, twin = registry.build_model(config), kind.naive(config)
    twin.load_state_dict(model.state_dict())
    assert isinstance(model, kind.model)
    assert isinstance(twin, kind.model)


@pytest.mark.slow
def test_a_toy_model_trains_by_one_line_of_the_registry(monkeypatch, tmp_path):
    config = ToyConfig(width=8, item_table_rows=64)
    with pytest.raises(
        ValueError,
        match=r"models dcat, early_ranker, foundation, two_tower required, found ToyConfig; add its kind to reqdedup\.models",
    ):
        registry.build_model(config)
    monkeypatch.setitem(registry.MODELS, "toy", ModelKind(ToyConfig, Toy, Toy, task="ranking"))
    training = TrainingConfig(
        model=config, num_steps=8, max_epochs=0, requests_per_step=12, learning_rate=0.05, world_size=1, held_out=0.2
    )
    assert TrainingConfig.from_dict(training.to_dict()) == training
    result = run_rank(lambda progress: None, training, with_signal(random_log()), str(tmp_path))
    assert result.losses[-1] < result.losses[0]
    model = load_model(tmp_path / "checkpoint.pt")
    assert isinstance(model, Toy)
    assert not model.training
    batch = random_batch([3], [2])
    assert torch.isfinite(model(batch)).all()


def test_no_part_of_the_library_asks_what_a_configuration_or_a_model_is():
    classes = {cls.__name__ for kind in registry.MODELS.values() for cls in (ModelConfig, kind.config, kind.model)}
    question = re.compile(rf"isinstance\([^)]*\b({'|'.join(sorted(classes))})\b")
    asking = [path for path in Path(registry.__file__).parents[1].rglob("*.py") if question.search(path.read_text())]
    assert not asking
