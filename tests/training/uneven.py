"""A task, a model in fp64 and a batch for each rank: what ranks are compared with one process on."""

from __future__ import annotations

import numpy as np
import torch

from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.registry import build_model
from reqdedup.training.blocks import RequestBlock
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.config import TrainingConfig
from reqdedup.training.tasks import Ranking, Retrieval
from tests.training.logs import SCHEMA, random_log

NO_STRINGS = SCHEMA.select(column.name for column in SCHEMA.columns if column.dtype != "string")


def model_config(task, **changes):
    sizes = {"width": 8, "num_layers": 2, "item_table_rows": 64, "category_table_rows": 8, "hidden_widths": (6, 5)}
    if task == "ranking":
        return DCATConfig.from_schema(NO_STRINGS, labels=("click",), **sizes)
    return TwoTowerConfig.from_schema(NO_STRINGS, output_width=4, **sizes, **changes)


def _double(batch):
    return batch._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def case_of(task_name, sizes, of_model=None, **options):
    torch.manual_seed(0)
    log = random_log(num_groups=1, requests_per_group=sum(sizes), seed=4)
    block = RequestBlock.of(log.groups[0].select(list(NO_STRINGS.names)), NO_STRINGS)
    batches = [_double(block.take(np.arange(sum(sizes[:rank]), sum(sizes[: rank + 1])))) for rank in range(len(sizes))]
    for batch in batches:  # few items, so that identities collide over ranks too
        batch.item_id_B.remainder_(7)
    config = TrainingConfig(
        model=model_config(task_name, **(of_model or {})),
        num_steps=1,
        requests_per_step=16,
        learning_rate=1e-3,
        **options,
    )
    items = torch.cat([batch.item_id_B for batch in batches]).numpy()
    catalogue = Catalogue.of_rows(items, np.ones(len(items)), np.zeros(len(items)), {})
    task = Ranking(config) if task_name == "ranking" else Retrieval(config, catalogue, torch.device("cpu"))
    return task, build_model(config.model).double(), batches
