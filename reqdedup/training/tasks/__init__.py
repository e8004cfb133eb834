"""What a model can be trained for, by the name that the registry of models uses."""

from __future__ import annotations

import torch

from reqdedup.training.config import TrainingConfig
from reqdedup.training.split import Split
from reqdedup.training.tasks.pretraining import Pretraining
from reqdedup.training.tasks.ranking import Ranking
from reqdedup.training.tasks.retrieval import Retrieval
from reqdedup.training.tasks.task import LoaderOf, Task

TASKS: dict[str, type[Task]] = {"ranking": Ranking, "retrieval": Retrieval, "pretraining": Pretraining}


def prepare_task(config: TrainingConfig, loader_of: LoaderOf, device: torch.device, train: Split) -> Task:
    """The task of `config.model`, ready for the first step; a collective. See `Task.prepare`."""
    return TASKS[config.task].prepare(config, loader_of, device, train)


__all__ = ["TASKS", "Pretraining", "Ranking", "Retrieval", "Task", "prepare_task"]
